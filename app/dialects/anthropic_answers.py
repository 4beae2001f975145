"""Answers as Anthropic's messages, whole and as events. Beyond Anthropic's own an answer has `sources`
and `tools_used`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from app.answer import Choice
from app.dialects.anthropic import blocks_of, error
from app.dialects.events import Event, Json
from app.dialects.openai import sources
from app.errors import MindFuError
from app.messages import Delta, Done, End, Generate, Passage, ToolCallDelta, Usage
from app.tools.runner import ToolRun

Kind = Literal["thinking", "text", "tool_use"]
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageRenderer:
    """One answer. Blocks follow each other: one is open at a time, and calls come one after the other."""

    def __init__(self, generate: Generate, sources: Sequence[Passage] = ()) -> None:
        self.generate, self.sources = generate, sources
        self.index = -1  # of the open block, or of the last one
        self.open: tuple[Kind, int] | None = None  # with the number of the call
        self.used: list[str] = []  # of the server's tools

    def opening(self) -> Iterable[Event]:
        """The message without content."""
        yield _event("message_start", message=self._message([], None, None, {"input_tokens": 0, "output_tokens": 0}))
        yield _event("ping")

    def piece(self, delta: Delta) -> Iterable[Event]:
        """What there is of it, in blocks of its kinds."""
        if delta.reasoning:
            yield from self._continue(("thinking", 0), {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.text:
            yield from self._continue(("text", 0), {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.text})
        for call in delta.tool_calls:
            yield from self._call(call)

    def ran(self, run: ToolRun) -> None:
        """Told with the end."""
        self.used.append(run.line())

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:  # noqa: ARG002 - of every renderer
        """The end of the last block, why it ended, and what it cost."""
        yield from self._close()
        end = done.ends[0]
        told = {"stop_reason": _reason(end), "stop_sequence": end.stop}
        yield _event("message_delta", delta=told, usage=usage(done.usage), **self._beside())
        yield _event("message_stop")

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """Anthropic's error event."""
        yield Event(error(exc, self.generate.request_id), "error")

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        end = done.ends[0]
        message = self._message(blocks_of(choices[0].message()), _reason(end), end.stop, usage(done.usage))
        return message | self._beside()

    def _beside(self) -> Json:
        return {"sources": sources(self.sources)} | ({"tools_used": self.used} if self.used else {})

    def _message(self, content: list[Json], reason: str | None, stop: str | None, counted: Json) -> Json:
        return {
            "id": f"msg_{self.generate.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self.generate.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": counted,
        }

    def _call(self, call: ToolCallDelta) -> Iterable[Event]:
        if call.id is not None:
            begun: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            yield from self._continue(("tool_use", call.index), begun)
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _continue(self, block: tuple[Kind, int], begun: Json) -> Iterable[Event]:
        if self.open == block:
            return
        yield from self._close()
        self.index += 1
        self.open = block
        yield _event("content_block_start", index=self.index, content_block=begun)

    def _close(self) -> Iterable[Event]:
        if self.open is None:
            return
        if self.open[0] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        self.open = None
        yield _event("content_block_stop", index=self.index)

    def _delta(self, delta: Json) -> Event:
        return _event("content_block_delta", index=self.index, delta=delta)


def usage(counted: Usage) -> Json:
    """Anthropic's usage: what the cache gave is no part of `input_tokens`."""
    return {
        "input_tokens": counted.prompt_tokens - counted.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counted.cached_tokens,
        "output_tokens": counted.completion_tokens,
    }


def _reason(end: End) -> str:
    return "stop_sequence" if end.stop is not None else REASONS[end.finish_reason]


def _event(name: str, **fields: object) -> Event:
    return Event({"type": name, **fields}, name)
