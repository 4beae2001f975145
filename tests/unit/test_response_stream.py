"""An answer of the Responses API, whole and as events: all of it passes OpenAI's published schema."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.answer import gather
from app.dialects.events import Renderer
from app.dialects.response_stream import Head, ResponseRenderer, request_id, response_id, retold
from app.dialects.responses import ResponsesRequest
from app.errors import ContextTooLong, EngineFailed, MindFuError, Overloaded
from app.messages import (
    Alternative,
    Delta,
    Done,
    End,
    FinishReason,
    Message,
    Passage,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from app.turns import RecordedTurn
from tests.openai_schema import validate, validate_event

SOURCE = Passage(document_id="d", collection="c", title="T", chunk=0, text="x", score=1.0, start=0, end=1)
USAGE = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)
THINK, SAY, MORE = Delta("", 1, reasoning="Hm."), Delta("So ", 1), Delta("[1].", 1)
CALL = Delta("", 1, tool_calls=(ToolCallDelta(0, '{"path"', id="call_1", name="read"),))
REST = Delta("", 1, tool_calls=(ToolCallDelta(0, ': "a"}'), ToolCallDelta(1, "{}", id="call_2", name="read")))
PATCH = Delta("", 1, tool_calls=(ToolCallDelta(0, '{"input": ', id="call_1", name="patch"),))
PATCHED = Delta("", 1, tool_calls=(ToolCallDelta(0, '"a b"}'),))
TOKEN = TokenLogprob(Alternative("So ", b"So ", -0.5), (Alternative("\ufffd", b"\xc3", float("-inf")),))


def done(reason: FinishReason = "stop") -> Done:
    return Done((End(reason),), USAGE, Timings(queued_s=0, prefill_s=0, decode_s=0))


def renderer(**fields: Any) -> ResponseRenderer:
    tools = [{"type": "function", "name": "read"}, {"type": "custom", "name": "patch"}]
    request = ResponsesRequest.model_validate({"model": "m", "input": "hi", "tools": tools} | fields)
    return ResponseRenderer(Head("resp_x", "m", request.echo(7), (SOURCE,), "c", carried=request.carries_reasoning()))


def streamed(deltas: Sequence[Delta], end: Done | MindFuError, render: Renderer | None = None) -> list[dict[str, Any]]:
    """The events of an answer, each held to its schema, to its name and to its number."""
    render = render or renderer()
    sent = [*render.opening(), *(event for delta in deltas for event in render.piece(delta))]
    sent += render.closing(gather(deltas), end) if isinstance(end, Done) else render.error(end)
    for number, event in enumerate(sent):
        assert isinstance(event.data, dict)
        validate_event(event.data)
        assert (event.name, event.data["sequence_number"]) == (event.data["type"], number)
    return [event.data for event in sent if isinstance(event.data, dict)]


def types(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_is_told_in_the_published_order() -> None:
    """Every event of one message, the citation among them."""
    events = streamed([SAY, MORE], done())
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.annotation.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events if event["type"].endswith(".delta")] == ["So ", "[1]."]
    assert events[7]["text"] == "So [1]."
    assert {event["item_id"] for event in events if "item_id" in event} == {"msg_x_0"}


def test_reasoning_ends_before_the_text_and_the_text_before_the_calls() -> None:
    """One item is open at a time, and each has its place."""
    events = streamed([THINK, SAY, CALL, REST], done("tool_calls"))
    items = [
        (event["type"].removeprefix("response.output_item."), event["output_index"], event["item"]["type"])
        for event in events
        if "output_item" in event["type"]
    ]
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert items == [(step, place, kind) for place, kind in enumerate(kinds) for step in ("added", "done")]


def test_the_arguments_of_a_call_come_in_pieces_and_whole() -> None:
    """Codex waits for the item that is done."""
    events = streamed([CALL, REST], done("tool_calls"))
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    whole = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert pieces == ['{"path"', ': "a"}', "{}"]
    assert [(event["name"], event["arguments"]) for event in whole] == [("read", '{"path": "a"}'), ("read", "{}")]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(item["call_id"], item["id"], item["status"]) for item in items] == [
        ("call_1", "fc_x_0", "completed"),
        ("call_2", "fc_x_1", "completed"),
    ]


def test_a_custom_tool_is_called_with_text() -> None:
    """Told when it is whole, because pieces of JSON are no text."""
    events = streamed([PATCH, PATCHED], done("tool_calls"))
    assert types(events)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert events[4]["input"] == "a b"
    assert events[2]["item"] | {"input": "a b", "status": "completed"} == events[5]["item"]


def test_reasoning_is_content_and_travels_with_clients_that_ask_for_it() -> None:
    """`include: reasoning.encrypted_content`."""
    (item,) = [
        event["item"]
        for event in streamed([THINK, SAY], done(), renderer(include=["reasoning.encrypted_content"]))
        if event["type"] == "response.output_item.done" and event["item"]["type"] == "reasoning"
    ]
    assert item["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert item["encrypted_content"] == "mindfu1.SG0u"
    assert "encrypted_content" not in streamed([THINK], done())[-1]["response"]["output"][0]


def test_log_probabilities_are_in_every_delta_and_in_the_part() -> None:
    """JSON knows no infinity."""
    events = streamed([Delta("So ", 1, logprobs=(TOKEN,)), MORE], done())
    told = {
        "token": "So ",
        "logprob": -0.5,
        "bytes": [83, 111, 32],
        "top_logprobs": [{"token": "\ufffd", "logprob": -9999.0, "bytes": [0xC3]}],
    }
    assert events[4]["logprobs"] == [told]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [told]


@pytest.mark.parametrize(
    "deltas",
    [[], [SAY, MORE], [THINK], [THINK, SAY, MORE], [CALL, REST], [THINK, SAY, CALL, REST], [PATCH, PATCHED]],
    ids=["nothing", "text", "reasoning", "both", "calls", "all", "custom"],
)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_stream_ends_with_what_the_whole_answer_is(deltas: list[Delta], reason: FinishReason) -> None:
    """So a client may read either."""
    whole = renderer().whole(gather(deltas), done(reason))
    validate("Response", whole)
    assert streamed(deltas, done(reason))[-1]["response"] == whole


def test_the_whole_answer_says_what_is_known_of_it() -> None:
    """Tokens, sources and the conversation besides the request."""
    whole = renderer(metadata={"a": "b"}).whole(gather([THINK, SAY]), done())
    assert (whole["id"], whole["object"], whole["created_at"], whole["model"]) == ("resp_x", "response", 7, "m")
    assert (whole["status"], whole["error"], whole["incomplete_details"]) == ("completed", None, None)
    assert whole["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }
    assert (whole["metadata"], whole["conversation"]) == ({"a": "b"}, {"id": "c"})
    assert [source["document_id"] for source in whole["sources"]] == ["d"]


def test_an_answer_that_met_its_limit_is_incomplete() -> None:
    """The item that was cut short as well."""
    last = streamed([THINK, SAY], done("length"))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (EngineFailed("it broke"), "server_error"),
        (Overloaded(9, 8, 1.0), "rate_limit_exceeded"),
        (ContextTooLong(9, 1, 8), "invalid_prompt"),
    ],
)
def test_a_late_failure_is_a_failed_response_with_what_was_told(failure: MindFuError, code: str) -> None:
    """In the codes that the published schema has."""
    last = streamed([THINK, SAY], failure)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": code, "message": str(failure)}
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "incomplete"]
    assert streamed([], failure)[-1]["response"]["output"] == []


@pytest.mark.parametrize(
    ("kept", "told", "texts"),
    [
        ({"status": "complete", "usage": USAGE}, "completed", ["So."]),
        ({"status": "truncated", "usage": USAGE}, "incomplete", ["So."]),
        ({"status": "cancelled"}, "cancelled", ["So."]),
        ({"status": "cancelled", "answer": Message(role="assistant")}, "cancelled", []),
        ({"status": "failed", "error": "it broke"}, "failed", ["So."]),
        ({"status": "failed", "error": "it broke", "answer": Message(role="assistant")}, "failed", []),
    ],
)
def test_a_turn_that_was_kept_is_told_as_it_ended(kept: dict[str, Any], told: str, texts: list[str]) -> None:
    """Tokens only where they were counted, and no item of an answer that never began."""
    facts = {"answer": Message(role="assistant", content="So."), "parent_id": None, "messages": ()}
    facts |= {"request_id": "req_x", "model": "m", "latency_s": 0.1, "created_at": datetime.now(UTC)}
    body = retold(renderer().head, RecordedTurn(**(facts | kept)))
    validate("Response", body)
    assert (body["status"], "usage" in body) == (told, "usage" in kept)
    assert [item["content"][0]["text"] for item in body["output"]] == texts
    assert (body["error"] is not None) == (told == "failed")


words = st.text("ab 1[]", max_size=4)
said = st.builds(Delta, text=words, tokens=st.just(1), reasoning=words)
called = st.builds(
    lambda index, name, arguments: Delta("", 1, tool_calls=(ToolCallDelta(index, arguments, f"call_{index}", name),)),
    st.integers(0, 2),
    st.sampled_from(["read", "patch"]),
    words,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(said | called, max_size=8), st.sampled_from(["stop", "length", "tool_calls"]))
def test_whatever_the_order_of_the_pieces_the_events_fit_together(deltas: list[Delta], reason: FinishReason) -> None:
    """Every item is added, told and done before the next, in its place; the pieces of it make up what it is."""
    events = streamed(deltas, done(reason))
    open_: dict[str, Any] | None = None
    pieces, items = "", list[dict[str, Any]]()
    for event in events[2:-1]:
        if event["type"] == "response.output_item.added":
            assert open_ is None
            assert event["output_index"] == len(items)
            open_, pieces = event["item"], ""
        elif event["type"] == "response.output_item.done":
            assert open_
            assert event["item"]["id"] == open_["id"]
            item = event["item"]
            assert pieces == (
                item["content"][0]["text"] if "content" in item else item.get("arguments", item.get("input"))
            )
            items.append(item)
            open_ = None
        else:
            assert open_
            assert (event["item_id"], event["output_index"]) == (open_["id"], len(items))
            pieces += event.get("delta", "")
    assert open_ is None
    assert events[-1]["response"]["output"] == items
    assert len({item["id"] for item in items}) == len(items)


def test_the_id_of_a_response_tells_its_request() -> None:
    """So a response is found as the turn of its request."""
    assert response_id("req_ab") == "resp_ab"
    assert request_id("resp_ab") == "req_ab"
