"""Answers as chat completions, whole and as chunks.

Beyond OpenAI's own an answer has `reasoning_content` where the model reasons, `sources` where it was given some, and
`tools_used` where it called the server's tools.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import to_json

from app.answer import Choice
from app.dialects.events import Event, Json
from app.dialects.openai import annotations, error, sources, usage
from app.dialects.openai_messages import external
from app.dialects.openai_requests import ChatRequest, GenerationRequest
from app.errors import MindFuError
from app.messages import Alternative, Delta, Done, End, Generate, Passage, TokenLogprob, ToolCallDelta
from app.tools.runner import ToolRun

LEAST_LOGPROB = -9999.0  # JSON has no infinity
PADDED_TO = 64  # bytes


class Stream:
    """What the chunks of one stream share: one id, one `created`, and null for usage where it comes at the end."""

    def __init__(
        self, kind: str, prefix: str, request: GenerationRequest, generate: Generate, fingerprint: str
    ) -> None:
        self.include_usage, self.obfuscate = request.include_usage, request.include_obfuscation
        self.head: Json = {
            "id": f"{prefix}-{generate.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": generate.model,
            "system_fingerprint": fingerprint,
        }
        if request.service_tier:
            self.head["service_tier"] = "default"  # the one that we have

    def chunk(self, *choices: Json, **more: Any) -> Event:
        """One chunk. Where sizes are to tell nothing it is padded to a multiple of PADDED_TO."""
        chunk = self.head | ({"usage": None} if self.include_usage else {}) | {"choices": choices} | more
        if self.obfuscate:
            chunk["obfuscation"] = "."
            chunk["obfuscation"] += "." * (-len(to_json(chunk)) % PADDED_TO)
        return Event(chunk)

    def end(self, done: Done) -> Iterable[Event]:
        """The usage if asked for, and [DONE]."""
        if self.include_usage:
            yield Event(self.head | {"choices": [], "usage": usage(done.usage)})
        yield Event("[DONE]")


class ChatRenderer:
    """One answer. base_url: of this server, for the links of citations."""

    def __init__(
        self,
        request: ChatRequest,
        generate: Generate,
        *,
        fingerprint: str,
        sources: Sequence[Passage] = (),
        base_url: str = "",
    ) -> None:
        self.n, self.older_calls, self.sources, self.base_url = generate.n, request.older_calls, sources, base_url
        self.logprobs = generate.logprobs is not None
        self.used: list[str] = []  # of the server's tools
        self.stream = Stream("chat.completion.chunk", "chatcmpl", request, generate, fingerprint)

    def opening(self) -> Iterable[Event]:
        """The role, of each of the `n` answers."""
        for index in range(self.n):
            yield self.stream.chunk(_choice(index, {"role": "assistant", "content": "", "refusal": None}))

    def piece(self, delta: Delta) -> Iterable[Event]:
        """What there is of it; a piece that shows nothing yet is no chunk."""
        told: Json = {}
        if delta.reasoning:
            told["reasoning_content"] = delta.reasoning
        if delta.text:
            told["content"] = delta.text
        if delta.tool_calls:
            told |= self._calls(delta.tool_calls)
        if told or delta.logprobs:
            yield self.stream.chunk(_choice(delta.choice, told, delta.logprobs))

    def ran(self, run: ToolRun) -> None:
        """Told with the end."""
        self.used.append(run.line())

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:
        """The finish reasons with citations, the sources with the last; then the usage if asked for."""
        for index, (choice, end) in enumerate(zip(choices, done.ends, strict=True)):
            cited = {"annotations": annotations(choice.text, self.sources, self.base_url)} if self.sources else {}
            last = {"sources": sources(self.sources)} | self._used() if index == len(choices) - 1 else {}
            yield self.stream.chunk(_choice(index, cited, (), self._reason(end)), **last)
        yield from self.stream.end(done)

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """The error object, and no [DONE]."""
        yield Event(error(exc))

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        told = [
            {
                "index": index,
                "message": self._message(choice),
                "logprobs": _logprobs(choice.logprobs) if self.logprobs else None,
                "finish_reason": self._reason(end),
            }
            for index, (choice, end) in enumerate(zip(choices, done.ends, strict=True))
        ]
        return self.stream.head | {
            "object": "chat.completion",
            "choices": told,
            "usage": usage(done.usage),
            "sources": sources(self.sources),
            **self._used(),
        }

    def _used(self) -> Json:
        return {"tools_used": self.used} if self.used else {}

    def _message(self, choice: Choice) -> Json:
        message = external(choice.message())
        if self.older_calls and choice.tool_calls:
            message["function_call"] = message.pop("tool_calls")[0]["function"]
        cited = annotations(choice.text, self.sources, self.base_url)
        return message | {"refusal": None, "annotations": cited}

    def _calls(self, pieces: Sequence[ToolCallDelta]) -> Json:
        if self.older_calls:
            first = [piece for piece in pieces if piece.index == 0]
            name = next((piece.name for piece in first if piece.name), None)
            arguments = "".join(piece.arguments for piece in first)
            return {"function_call": ({"name": name} if name else {}) | {"arguments": arguments}} if first else {}
        return {"tool_calls": [_call(piece) for piece in pieces]}

    def _reason(self, end: End) -> str:
        return "function_call" if self.older_calls and end.finish_reason == "tool_calls" else end.finish_reason


def _choice(index: int, delta: Json, tokens: Sequence[TokenLogprob] = (), reason: str | None = None) -> Json:
    told = _logprobs(tokens) if tokens else None
    return {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}


def _call(piece: ToolCallDelta) -> Json:
    """A piece of a call: id, type and name come with the first one only."""
    if piece.id is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _logprobs(tokens: Sequence[TokenLogprob]) -> Json:
    content = [
        _alternative(token.chosen) | {"top_logprobs": [_alternative(other) for other in token.top]} for token in tokens
    ]
    return {"content": content, "refusal": None}


def _alternative(token: Alternative) -> Json:
    return {"token": token.text, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": list(token.data)}
