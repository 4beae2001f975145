"""One answer as a response object of the Responses API, whole, or as the events that tell how it comes to be.

Every event has its name in an `event:` line and a `sequence_number`, counted from 0. One item is open at a time: an
answer reasons, then speaks, then calls. Nothing follows the last event, no `[DONE]` either. Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.answer import Choice
from app.dialects.events import Event, Json
from app.dialects.openai import sources as told_sources
from app.dialects.response_items import (
    Status,
    call_item,
    logprob,
    message_item,
    output_items,
    output_stem,
    reasoning_item,
    reasoning_part,
    search_item,
    text_part,
)
from app.errors import MindFuError
from app.messages import Delta, Done, Message, Passage, TokenLogprob, ToolCall, ToolCallDelta, Usage
from app.tools.runner import ToolRun
from app.turns import RecordedTurn, TurnStatus

Ending = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
Speaker = Literal["reasoning", "message"]
TOLD: dict[TurnStatus, Ending] = {
    "complete": "completed",
    "truncated": "incomplete",
    "failed": "failed",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class Head:
    """What is known of a response before its answer. echo: see `ResponsesRequest.echo`."""

    id: str
    model: str
    echo: Json
    sources: Sequence[Passage] = ()
    conversation_id: str | None = None
    carried: bool = False  # reasoning comes with `encrypted_content`
    query: str = ""  # of a search of files
    results: bool = False  # a search tells what it found
    used: tuple[str, ...] = ()  # calls of the server's tools, a line for each

    @property
    def own(self) -> str:
        """What is the response's own in its id, and the beginning of its items' ids."""
        return self.id.removeprefix("resp_")

    @property
    def done(self) -> tuple[Json, ...]:
        """The items that are there before the answer: a search of files, where one was asked for."""
        if not any(tool["type"] == "file_search" for tool in self.echo["tools"]):
            return ()
        return (search_item(self.own, self.query, self.sources, results=self.results),)

    @property
    def customs(self) -> frozenset[str]:
        """The names of the custom tools."""
        return frozenset(tool["name"] for tool in self.echo["tools"] if tool["type"] == "custom")


def response_id(request_id: str) -> str:
    """The id of the response to a request of ours."""
    return f"resp_{request_id.removeprefix('req_')}"


def request_id(response: str) -> str:
    """The other way round."""
    return f"req_{response.removeprefix('resp_')}"


def response(
    head: Head, status: Ending, output: Sequence[Json], *, usage: Usage | None = None, error: Json | None = None
) -> Json:
    """The response object. usage: None where it is not known; the published schema then wants no key at all."""
    told = {
        "id": head.id,
        "object": "response",
        "status": status,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": head.model,
        "output": list(output),
        "conversation": None if head.conversation_id is None else {"id": head.conversation_id},
        "sources": told_sources(head.sources),
    }
    used = {"tools_used": list(head.used)} if head.used else {}
    return head.echo | told | used | ({} if usage is None else {"usage": usage_told(usage)})


def retold(head: Head, turn: RecordedTurn) -> Json:
    """The response object of a turn that was kept. Log-probabilities are not kept."""
    status = TOLD[turn.status]
    error = {"code": "server_error", "message": turn.error or ""} if status == "failed" else None
    said = turn.answer.content or turn.answer.reasoning or turn.answer.tool_calls
    if not said and status in {"failed", "cancelled"}:
        return response(head, status, (), usage=turn.usage, error=error)
    return answered(head, turn.answer, status, usage=turn.usage, error=error)


def answered(
    head: Head, answer: Message, status: Ending, *, usage: Usage | None = None, error: Json | None = None,
    logprobs: Sequence[TokenLogprob] = (),
) -> Json:  # fmt: skip
    """The response object of an answer that has ended, however it did."""
    last: Status = "completed" if status == "completed" else "incomplete"
    output = output_items(
        answer,
        head.own,
        status=last,
        sources=head.sources,
        customs=head.customs,
        logprobs=logprobs,
        carried=head.carried,
        done=head.done,
    )
    return response(head, status, output, usage=usage, error=error)


def usage_told(usage: Usage) -> Json:
    """Tokens. Nothing is written to the prompt cache on the caller's account."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def failure(exc: MindFuError) -> Json:
    """The error of a failed response, in the few codes that the published schema has."""
    code = "rate_limit_exceeded" if exc.status == 429 else "invalid_prompt" if exc.status < 500 else "server_error"
    return {"code": code, "message": str(exc)}


def ending(done: Done) -> Literal["completed", "incomplete"]:
    """How an answer that did not fail ended."""
    return "incomplete" if done.finish_reason == "length" else "completed"


@dataclass
class _Open:
    """The item that is being told. key: what pieces belong to it."""

    key: Speaker | int  # int: of a call
    place: int
    id: str
    call: ToolCall | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ResponseRenderer:
    """Renders one answer; see `app.dialects.events.Renderer`."""

    def __init__(self, head: Head) -> None:
        self.head, self.stem = head, output_stem(head.own)
        self.sent = 0
        self.open: _Open | None = None
        self.output: list[Json] = []  # the items that are done

    def opening(self) -> Iterable[Event]:
        """The response, as yet without output."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=response(self.head, "in_progress", ()))
        for place, item in enumerate(self.head.done):
            begun = {"output_index": place, "item": item | {"status": "in_progress", "results": None}}
            yield self._event("response.output_item.added", **begun)
            for state in ("in_progress", "searching", "completed"):
                yield self._event(f"response.file_search_call.{state}", output_index=place, item_id=item["id"])
            yield self._event("response.output_item.done", output_index=place, item=item)
            self.output.append(item)

    def piece(self, delta: Delta) -> Iterable[Event]:
        """One delta."""
        if delta.reasoning:
            yield from self._turn_to("reasoning")
            yield self._add("response.reasoning_text.delta", delta.reasoning, content_index=0)
        if delta.text or (delta.logprobs and not delta.reasoning and not delta.tool_calls):
            yield from self._turn_to("message")
            assert self.open
            self.open.logprobs += delta.logprobs
            told = [logprob(token) for token in delta.logprobs]
            yield self._add("response.output_text.delta", delta.text, content_index=0, logprobs=told)
        for call in delta.tool_calls:
            yield from self._turn_to_call(call)
            assert self.open
            assert self.open.call
            if self.open.call.name in self.head.customs:
                self.open.pieces.append(call.arguments)  # JSON as yet: told as text when it is whole
            elif call.arguments:
                yield self._add("response.function_call_arguments.delta", call.arguments)

    def ran(self, run: ToolRun) -> None:
        """Told with the end."""
        self.head = replace(self.head, used=(*self.head.used, run.line()))

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:  # noqa: ARG002 - told already
        """What is open ends, and the response with it."""
        status = ending(done)
        if len(self.output) == len(self.head.done) and not self.open:
            yield from self._turn_to("message")
        yield from self._close(status)
        told = response(self.head, status, self.output, usage=done.usage)
        yield self._event(f"response.{status}", response=told)

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """The response has failed; what was told of it stays in it."""
        output = [*self.output, self._item("incomplete")] if self.open else self.output
        yield self._event("response.failed", response=response(self.head, "failed", output, error=failure(exc)))

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        choice, status = choices[0], ending(done)
        return answered(self.head, choice.message(), status, usage=done.usage, logprobs=choice.logprobs)

    def _event(self, kind: str, /, **told: Any) -> Event:
        event = {"type": kind, "sequence_number": self.sent} | told
        self.sent += 1
        return Event(event, kind)

    def _of_item(self, kind: str, /, **told: Any) -> Event:
        assert self.open
        return self._event(kind, item_id=self.open.id, output_index=self.open.place, **told)

    def _add(self, name: str, text: str, **told: Any) -> Event:
        assert self.open
        self.open.pieces.append(text)
        return self._of_item(name, delta=text, **told)

    def _turn_to(self, speaker: Speaker) -> Iterator[Event]:
        """Go on with reasoning or with the message; what else was open ends."""
        if self.open and self.open.key == speaker:
            return
        yield from self._close("completed")
        kind = "rs" if speaker == "reasoning" else "msg"
        self.open = _Open(speaker, len(self.output), f"{kind}_{self.stem}{len(self.output)}")
        yield self._added(self._empty())
        part = reasoning_part("") if speaker == "reasoning" else text_part("")
        yield self._of_item("response.content_part.added", content_index=0, part=part)

    def _turn_to_call(self, piece: ToolCallDelta) -> Iterator[Event]:
        """Go on with a call; what else was open ends."""
        if self.open and self.open.key == piece.index:
            return
        yield from self._close("completed")
        call = ToolCall(id=piece.id or "", name=piece.name or "", arguments="")
        item = call_item(self.stem, len(self.output), call, "in_progress", self.head.customs)
        self.open = _Open(piece.index, len(self.output), item["id"], call)
        yield self._added(item)

    def _added(self, item: Json) -> Event:
        assert self.open
        return self._event("response.output_item.added", output_index=self.open.place, item=item)

    def _empty(self) -> Json:
        assert self.open
        if self.open.key == "reasoning":
            return reasoning_item(self.open.id, "", "in_progress", carried=False)
        return message_item(self.open.id, None, "in_progress")

    def _close(self, status: Literal["completed", "incomplete"]) -> Iterator[Event]:
        """End what is open, if anything is."""
        if not self.open:
            return
        item = self._item(status)
        yield from self._last_of(item)
        yield self._event("response.output_item.done", output_index=self.open.place, item=item)
        self.output.append(item)
        self.open = None

    def _last_of(self, item: Json) -> Iterator[Event]:
        assert self.open
        text = self.open.text
        if self.open.call:
            if item["type"] == "custom_tool_call":
                yield self._of_item("response.custom_tool_call_input.delta", delta=item["input"])
                yield self._of_item("response.custom_tool_call_input.done", input=item["input"])
            else:
                done = "response.function_call_arguments.done"
                yield self._of_item(done, name=self.open.call.name, arguments=text)
            return
        part = item["content"][0]
        if self.open.key == "reasoning":
            yield self._of_item("response.reasoning_text.done", content_index=0, text=text)
        else:
            for index, annotation in enumerate(part["annotations"]):
                place = {"content_index": 0, "annotation_index": index}
                yield self._of_item("response.output_text.annotation.added", **place, annotation=annotation)
            logprobs = part["logprobs"]
            yield self._of_item("response.output_text.done", content_index=0, text=text, logprobs=logprobs)
        yield self._of_item("response.content_part.done", content_index=0, part=part)

    def _item(self, status: Literal["completed", "incomplete"]) -> Json:
        """What is open, as it stands."""
        assert self.open
        if self.open.call:
            call = self.open.call.model_copy(update={"arguments": self.open.text})
            return call_item(self.stem, self.open.place, call, status, self.head.customs)
        if self.open.key == "reasoning":
            return reasoning_item(self.open.id, self.open.text, status, carried=self.head.carried)
        return message_item(self.open.id, text_part(self.open.text, self.head.sources, self.open.logprobs), status)
