"""How long an answer may be, beside its prompt in the window. Pure, and the same for all engines."""

from app.errors import ContextTooLong, InvalidRequest
from app.messages import Generate


def answer_tokens(request: Generate, prompt_tokens: int, window: int) -> int:
    """The most tokens that an answer may have.

    Raises InvalidRequest for a prompt or a stop string that is empty, ContextTooLong where both do not fit.
    """
    if "" in request.stop:
        raise InvalidRequest("A stop string must not be empty.", "stop")
    if not prompt_tokens:
        raise InvalidRequest("The prompt is empty.", "prompt")
    free = max(1, window - prompt_tokens)
    answer = free if request.max_tokens is None else request.max_tokens
    answer = min(answer, free) if request.clip else answer
    if prompt_tokens + answer > window:
        raise ContextTooLong(prompt_tokens, answer, window)
    return answer
