"""Answers as OpenAI's older completions, whose chunks look like the whole."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from app.answer import Choice
from app.dialects.events import Event, Json
from app.dialects.openai import error, usage
from app.dialects.openai_chat import LEAST_LOGPROB, Stream
from app.dialects.openai_requests import CompletionRequest
from app.errors import MindFuError
from app.messages import Delta, Done, Generate, TokenLogprob


class CompletionRenderer:
    """One answer. `echo` puts the prompt before each text; `best_of` keeps the likeliest texts."""

    def __init__(self, request: CompletionRequest, generate: Generate, *, fingerprint: str) -> None:
        self.echoed = (generate.prompt or "") if request.echo else ""
        self.wanted, self.logprobs = request.wanted, request.logprobs is not None
        self.stream = Stream("text_completion", "cmpl", request, generate, fingerprint)
        self.offsets = [len(self.echoed)] * generate.n  # where the next token of each text begins

    def opening(self) -> Iterable[Event]:
        """The prompt, where it is to be echoed."""
        if self.echoed:
            for index in range(self.wanted):
                yield self.stream.chunk(_choice(index, self.echoed))

    def piece(self, delta: Delta) -> Iterable[Event]:
        """Its text."""
        if delta.text or delta.logprobs:
            told = logprobs(delta.logprobs, self.offsets[delta.choice]) if delta.logprobs else None
            self.offsets[delta.choice] += sum(_begun(token) for token in delta.logprobs)
            yield self.stream.chunk(_choice(delta.choice, delta.text, told))

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:  # noqa: ARG002 - as other renderers
        """The finish reasons, then the usage if asked for."""
        for index, end in enumerate(done.ends):
            yield self.stream.chunk(_choice(index, "", None, end.finish_reason))
        yield from self.stream.end(done)

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """The error object, and no [DONE]."""
        yield Event(error(exc))

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        answers = list(zip(choices, done.ends, strict=True))
        if len(answers) > self.wanted:
            answers = sorted(answers, key=lambda answer: _likelihood(answer[0]), reverse=True)[: self.wanted]
        told = [
            _choice(
                index,
                self.echoed + choice.text,
                logprobs(choice.logprobs, len(self.echoed)) if self.logprobs else None,
                end.finish_reason,
            )
            for index, (choice, end) in enumerate(answers)
        ]
        return self.stream.head | {"choices": told, "usage": usage(done.usage)}


def logprobs(tokens: Sequence[TokenLogprob], start: int) -> Json:
    """Log-probabilities in the form of completions. start: where the first token begins in the choice's text.

    The token that came is always among the likeliest ones, though it may be none of them.
    """
    offsets = accumulate((_begun(token) for token in tokens), initial=start)
    return {
        "tokens": [token.chosen.text for token in tokens],
        "token_logprobs": [_bounded(token.chosen.logprob) for token in tokens],
        "top_logprobs": [
            {other.text: _bounded(other.logprob) for other in reversed((*token.top, token.chosen))} for token in tokens
        ],
        "text_offset": [offset for offset, _ in zip(offsets, tokens, strict=False)],
    }


def _choice(index: int, text: str, told: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": told, "finish_reason": finish_reason}


def _begun(token: TokenLogprob) -> int:
    """How many characters begin in a token: a character's bytes may be parted by tokens."""
    return sum(byte & 0xC0 != 0x80 for byte in token.chosen.data)


def _bounded(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _likelihood(choice: Choice) -> float:
    """The log-probability per token: the longer of two answers is not the unlikelier for that."""
    tokens = [_bounded(token.chosen.logprob) for token in choice.logprobs]
    return sum(tokens) / len(tokens) if tokens else LEAST_LOGPROB
