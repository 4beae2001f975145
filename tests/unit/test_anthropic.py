"""Anthropic's Messages API: every field, block and event, read by the official client."""

import contextlib
import json
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.answer import gather
from app.dialects.anthropic import InputMessage, MessagesRequest, external, internal
from app.dialects.anthropic_answers import MessageRenderer
from app.errors import ContextTooLong, EngineFailed, InvalidRequest, MindFuError, Overloaded
from app.messages import Delta, Done, End, JsonFormat, Message, NamedTool, Timings, Tool, ToolCall, ToolCallDelta, Usage
from tests.captures import Capture, captures
from tests.server import Server

USAGE = Usage(prompt_tokens=7, completion_tokens=4, cached_tokens=5)
TIMINGS = Timings(queued_s=0, prefill_s=0, decode_s=0)
STOP, LENGTH, CALLED = (Done((End(reason),), USAGE, TIMINGS) for reason in ("stop", "length", "tool_calls"))
HI = [{"role": "user", "content": "hi"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = (ToolCallDelta(0, id="c1", name="weather"), ToolCallDelta(0, '{"city": "Köln"}'))


def parsed(**fields: Any) -> MessagesRequest:
    return MessagesRequest.model_validate({"model": "m", "max_tokens": 9, "messages": HI} | fields)


def generate(**fields: Any):
    return parsed(**fields).generate("r", "t", "m")


async def message(server: Server, **fields: Any) -> anthropic.types.Message:
    async with server.anthropic() as client:
        return await client.messages.create(model="m", max_tokens=9, messages=HI, **fields)


async def events(server: Server, **fields: Any) -> list[tuple[str, Any]]:
    """(event, data) of a stream, as they came over the wire."""
    body = {"model": "m", "max_tokens": 9, "messages": HI, "stream": True} | fields
    response = await server.post("/v1/messages", **body)
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n", 1) for frame in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


async def test_an_answer_is_a_message_of_blocks():
    """Thoughts, text and calls; tokens that the cache gave are counted apart."""
    server = Server(Delta("", 1, reasoning="hm"), Delta("yes", 1), Delta("", 2, tool_calls=CALL), CALLED)
    answer = await message(server, tools=[WEATHER])
    assert answer.id.startswith("msg_")
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert (answer.content[0].thinking, answer.content[1].text) == ("hm", "yes")
    assert answer.content[2].input == {"city": "Köln"}
    assert (answer.stop_reason, answer.role, answer.type) == ("tool_use", "assistant", "message")
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (2, 5, 4)


@pytest.mark.parametrize(
    ("done", "reason", "stop"),
    [
        (STOP, "end_turn", None),
        (LENGTH, "max_tokens", None),
        (Done((End("stop", "##"),), USAGE, TIMINGS), "stop_sequence", "##"),
    ],
)
async def test_why_an_answer_ended_is_told_in_anthropics_words(done: Done, reason: str, stop: str | None):
    """The stop sequence is named."""
    answer = await message(Server(Delta("yes", 1), done))
    assert (answer.stop_reason, answer.stop_sequence) == (reason, stop)


async def test_a_stream_has_every_event_in_its_order():
    """One block at a time, each with its beginning and its end; `event:` lines name them."""
    second = (ToolCallDelta(1, id="c2", name="weather"), ToolCallDelta(1, "{}"))
    server = Server(
        Delta("", 1, reasoning="h"), Delta("", 1, reasoning="m"), Delta("ye", 1), Delta("s", 1),
        Delta("", 2, tool_calls=CALL + second), CALLED,
    )  # fmt: skip
    told = await events(server, tools=[WEATHER])
    assert all(name == data["type"] for name, data in told)
    shape = [(name.removeprefix("content_block_"), data.get("index")) for name, data in told]
    assert shape == [
        ("message_start", None), ("ping", None),
        ("start", 0), ("delta", 0), ("delta", 0), ("delta", 0), ("stop", 0),
        ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1),
        ("start", 2), ("delta", 2), ("stop", 2),
        ("start", 3), ("delta", 3), ("stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    deltas = [data["delta"] for name, data in told if name == "content_block_delta"]
    kinds = ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 2 + ["input_json_delta"] * 2
    assert [delta["type"] for delta in deltas] == kinds
    assert json.loads(deltas[-2]["partial_json"]) == {"city": "Köln"}
    assert told[-2][1]["usage"]["output_tokens"] == 4


async def test_arguments_come_in_pieces_and_a_call_that_max_tokens_cuts_says_so():
    """One block; the pieces concatenate. Whole, its input is an object that nobody takes for arguments."""
    pieces = (ToolCallDelta(0, "", id="c1", name="weather"), ToolCallDelta(0, '{"ci'), ToolCallDelta(0, 'ty": "Kö'))
    server = Server(*(Delta("", 1, tool_calls=(piece,)) for piece in pieces), LENGTH)
    told = await events(server, tools=[WEATHER])
    deltas = [data["delta"]["partial_json"] for name, data in told if name == "content_block_delta"]
    assert deltas == ['{"ci', 'ty": "Kö']
    assert told[-2][1]["delta"]["stop_reason"] == "max_tokens"
    answer = await message(server, tools=[WEATHER])
    assert answer.content[0].input == {"invalid_arguments": '{"city": "Kö'}
    assert answer.stop_reason == "max_tokens"


async def test_the_official_client_puts_a_stream_together():
    """Its helper ends with the same message as an answer that did not stream."""
    server = Server(Delta("yes", 1), Delta("", 2, tool_calls=CALL), CALLED)
    async with (
        server.anthropic() as client,
        client.messages.stream(model="m", max_tokens=9, messages=HI, tools=[WEATHER]) as stream,
    ):
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert final.content[1].input == {"city": "Köln"}
    assert final.stop_reason == "tool_use"


async def test_a_late_failure_is_an_error_event():
    """Never a cut connection."""
    told = await events(Server(Delta("ye", 1), EngineFailed("it broke")))
    assert told[-1][0] == "error"
    assert told[-1][1]["error"]["type"] == "api_error"


@pytest.mark.parametrize(
    ("failure", "status", "kind", "words"),
    [
        (ContextTooLong(300, 20, 256), 400, "invalid_request_error", "prompt is too long: 300 tokens > 256 maximum"),
        (Overloaded(64, 64, 2.0), 529, "overloaded_error", "64 requests wait already"),
        (InvalidRequest("no", "tools"), 400, "invalid_request_error", "no"),
    ],
)
async def test_refusals_come_before_the_stream_in_anthropics_shape(failure: MindFuError, status, kind, words):
    """With the real status, whether a stream was asked for or not, and the id of the request."""
    for stream in (False, True):
        body = {"model": "m", "max_tokens": 9, "messages": HI, "stream": stream}
        response = await Server(failure).post("/v1/messages", **body)
        assert response.status_code == status
        told = response.json()
        assert (told["type"], told["error"]["type"]) == ("error", kind)
        assert words in told["error"]["message"]
        assert told["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    ("content", "status", "kind"),
    [(b"{", 400, "invalid_request_error"), (b'{"model": "' + b"x" * 3000 + b'"}', 413, "request_too_large")],
)
async def test_bodies_that_are_none_are_refused_in_the_same_shape(content: bytes, status: int, kind: str):
    """By the guard as well as by the parser."""
    async with Server(max_body=2000).http() as http:
        response = await http.post("/v1/messages", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind


async def test_tokens_are_counted_of_what_the_engine_would_read():
    """System prompt and tools included."""
    server = Server()
    async with server.anthropic() as client:
        counted = await client.messages.count_tokens(model="m", messages=HI, system="Be brief.", tools=[WEATHER])
    assert counted.input_tokens == 42
    assert server.asked[0].messages[0] == Message(role="system", content="Be brief.")
    assert [tool.name for tool in server.asked[0].tools] == ["weather"]


async def test_the_greeting_is_answered():
    """Claude's command line begins with HEAD /."""
    async with Server().http() as http:
        assert (await http.head("/")).status_code == 200
        assert (await http.get("/")).json()["name"] == "MindFu"


@pytest.mark.parametrize("capture", captures("/v1/messages"), ids=str)
async def test_what_real_clients_send_is_answered(capture: Capture):
    """Recorded requests of unmodified clients, their texts padded back to the original lengths."""
    server = Server(Delta("yes", 1), STOP)
    headers = {name: value.encode() for name, value in capture.headers.items()}
    async with server.http() as http:
        response = await http.post(f"/v1/messages?{capture.query}", json=capture.body, headers=headers)
    assert response.status_code == 200, response.text
    assert "yes" in response.text


@pytest.mark.parametrize("capture", captures("/v1/messages/count_tokens"), ids=str)
async def test_what_real_clients_count_is_counted(capture: Capture):
    """The same for count_tokens."""
    assert (await Server().post("/v1/messages/count_tokens", **capture.body)).json() == {"input_tokens": 42}


def test_every_field_reaches_the_engine():
    """Under our own names."""
    asked = generate(
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["##"], max_tokens=10**6,
        tools=[WEATHER | {"description": "d", "strict": True}], tool_choice={"type": "tool", "name": "weather"},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "high"},
    )  # fmt: skip
    assert asked.messages == (Message(role="system", content="a\n\nb"), Message(role="user", content="hi"))
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, asked.stop) == (0.5, 0.9, 7, ("##",))
    assert (asked.max_tokens, asked.clip) == (10**6, True)
    assert asked.tools == (Tool(name="weather", description="d", parameters=WEATHER["input_schema"], strict=True),)
    assert asked.tool_choice == NamedTool(name="weather")
    assert asked.thinking is True
    assert asked.response_format == JsonFormat(json_schema={"type": "object"})


@pytest.mark.parametrize(
    ("choice", "ours", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choices_are_translated(choice: dict[str, Any], ours: str, parallel: bool):
    """Any is OpenAI's required."""
    asked = generate(tools=[WEATHER], tool_choice=choice)
    assert (asked.tool_choice, asked.parallel_tool_calls) == (ours, parallel)


def test_results_of_tools_become_messages_of_their_own():
    """In their order, errors marked as such, the rest of the turn behind them."""
    use = [{"type": "tool_use", "id": name, "name": "weather", "input": {}} for name in ("a", "b")]
    results = [
        {"type": "tool_result", "tool_use_id": "b", "is_error": True, "content": "no such city"},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "20 °C"}]},
        {"type": "text", "text": "and now?"},
    ]
    turns = [*HI, {"role": "assistant", "content": use}, {"role": "user", "content": results}]
    asked = generate(messages=turns, tools=[WEATHER])
    assert asked.messages[2:] == (
        Message(role="tool", tool_call_id="b", content="Error: no such city"),
        Message(role="tool", tool_call_id="a", content="20 °C"),
        Message(role="user", content="and now?"),
    )


def test_what_only_anthropic_could_do_is_kept_and_not_shown_to_the_model():
    """Tools of its own, edits of the context, the client's metadata."""
    body = parsed(
        tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, WEATHER],
        metadata={"user_id": "u"}, context_management={"edits": []}, thinking={"type": "adaptive"}, speed="standard",
    )  # fmt: skip
    assert [tool.name for tool in body.generate("r", "t", "m").tools] == ["weather"]
    kept = body.kept()
    assert kept["ignored_tools"] == ["web_search_20250305"]
    assert (kept["metadata"], kept["context_management"]) == ({"user_id": "u"}, {"edits": []})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.name"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
         "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "odd": 1}]}]},
         "messages.0.content.0.odd"),
    ],
)  # fmt: skip
def test_what_we_do_not_do_is_refused_by_its_name(fields: dict[str, Any], param: str):
    """Never accepted and ignored."""
    with pytest.raises(InvalidRequest) as refusal:
        generate(**fields)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0}, {"max_tokens": None}, {"temperature": 1.5}, {"temperature": float("nan")}, {"top_k": -1},
        {"messages": []}, {"messages": [{"role": "robot", "content": "x"}]}, {"messages": [{"role": "user"}]},
        {"stream": "yes"}, {"system": 3}, {"tools": {}}, {"stop_sequences": ["a"] * 5}, {"model": ""},
    ],
)  # fmt: skip
def test_wrong_types_and_numbers_are_refused(fields: dict[str, Any]):
    """Before anything is done."""
    with pytest.raises(ValidationError):
        parsed(**fields)


TEXT = st.text(min_size=1, max_size=8)
CALLS = st.builds(
    lambda ids: tuple(ToolCall(id=f"c{n}", name="f", arguments=json.dumps({"n": n})) for n in range(ids)),
    st.integers(0, 2),
)


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    """Turns as a chat has them: questions, answers with calls, and the calls' results."""
    made = [Message(role="system", content=draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        made.append(Message(role="user", content=draw(TEXT)))
        calls = draw(CALLS)
        made.append(
            Message(role="assistant", content=draw(TEXT), reasoning=draw(st.text(max_size=5)), tool_calls=calls)
        )
        made += [Message(role="tool", tool_call_id=call.id, content=draw(TEXT)) for call in calls]
    return made


@given(chats())
def test_there_and_back_loses_nothing(chat: list[Message]):
    """Messages of ours in Anthropic's form are the same messages."""
    told, system = external(chat)
    back = internal([InputMessage.model_validate(message) for message in told])
    assert ([Message(role="system", content=system)] if system else []) + list(back) == chat


SAID = st.builds(Delta, text=st.text(max_size=3), tokens=st.just(1), reasoning=st.text(max_size=3))
CALLED_IN_PIECES = st.lists(st.text(max_size=4), max_size=3)  # of the arguments


@given(st.lists(SAID, max_size=5), st.lists(CALLED_IN_PIECES, max_size=3))
def test_a_stream_adds_up_to_the_whole(said: list[Delta], calls: list[list[str]]):
    """However it was cut: blocks in their order, each closed before the next, whose deltas make up what they are."""
    pieces = [
        Delta("", 1, tool_calls=(ToolCallDelta(index, piece, *((f"c{index}", "f") if first else ())),))
        for index, call in enumerate(calls)
        for first, piece in [(True, ""), *((False, piece) for piece in call)]
    ]
    render, deltas = MessageRenderer(generate()), [*said, *pieces]
    blocks: list[dict[str, str]] = []
    open_: dict[str, str] | None = None
    for event in (event for delta in deltas for event in render.piece(delta)):
        if event.name == "content_block_start":
            assert open_ is None
            open_ = {"type": event.data["content_block"]["type"], "told": ""}
            assert event.data["index"] == len(blocks)
            blocks.append(open_)
        elif event.name == "content_block_stop":
            open_ = None
        else:
            assert open_ is not None
            told = event.data["delta"]
            open_["told"] += told.get("text", told.get("thinking", told.get("partial_json", "")))
    (choice,) = gather(deltas)
    assert [event.name for event in render.closing((choice,), CALLED)][-2:] == ["message_delta", "message_stop"]
    for kind, told in (("text", choice.text), ("thinking", choice.reasoning)):
        assert "".join(block["told"] for block in blocks if block["type"] == kind) == told
    assert [block["told"] for block in blocks if block["type"] == "tool_use"] == ["".join(call) for call in calls]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = sorted({*MessagesRequest.model_fields, "metadata", "mcp_servers"})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_no_request_is_too_odd_to_be_refused(fields: dict[str, Any]):
    """Whatever stands in a field: it is understood, or refused with its name."""
    with contextlib.suppress(ValidationError, InvalidRequest):
        parsed(**fields).generate("r", "t", "m")
