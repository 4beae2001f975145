"""Answers as OpenAI's older completions, whose chunks look like the whole."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from app.answer import Choice
from app.dialects.events import Event, Json
from app.dialects.openai import error, usage
from app.dialects.openai_chat import LEAST_LOGPROB, Stream
from app.dialects.openai_requests import CompletionRequest
from app.errors import MindFuError
from app.messages import Delta, Done, End, Generate, TokenLogprob
from app.tools.runner import ToolRun


class CompletionRenderer:
    """The answers to some prompts, in their order. `echo` puts each before its texts; `best_of` keeps the best."""

    def __init__(self, request: CompletionRequest, prompts: Sequence[Generate], *, fingerprint: str) -> None:
        self.made, self.wanted, self.logprobs = prompts[0].n, request.wanted, request.logprobs is not None
        self.echoed = [(prompt.prompt or "") if request.echo else "" for prompt in prompts]
        self.stream = Stream("text_completion", "cmpl", request, prompts[0], fingerprint)
        self.offsets = [len(echoed) for echoed in self.echoed for _ in range(self.made)]  # of each text's next token

    def opening(self) -> Iterable[Event]:
        """The prompts, where they are to be echoed."""
        echoed = [text for text in self.echoed for _ in range(self.made)]
        for index, text in enumerate(echoed):
            if text:
                yield self.stream.chunk(_choice(index, text))

    def piece(self, delta: Delta) -> Iterable[Event]:
        """Its text."""
        if delta.text or delta.logprobs:
            told = logprobs(delta.logprobs, self.offsets[delta.choice]) if delta.logprobs else None
            self.offsets[delta.choice] += sum(_begun(token) for token in delta.logprobs)
            yield self.stream.chunk(_choice(delta.choice, delta.text, told))

    def ran(self, run: ToolRun) -> None:
        """Texts are continued without tools."""
        raise NotImplementedError(run)

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
        told: list[Json] = []
        for number, echoed in enumerate(self.echoed):
            mine = slice(number * self.made, (number + 1) * self.made)
            for choice, end in self._best(list(zip(choices[mine], done.ends[mine], strict=True))):
                likely = logprobs(choice.logprobs, len(echoed)) if self.logprobs else None
                told.append(_choice(len(told), echoed + choice.text, likely, end.finish_reason))
        return self.stream.head | {"choices": told, "usage": usage(done.usage)}

    def _best(self, answers: list[tuple[Choice, End]]) -> list[tuple[Choice, End]]:
        if len(answers) == self.wanted:
            return answers
        return sorted(answers, key=lambda answer: _likelihood(answer[0]), reverse=True)[: self.wanted]


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
