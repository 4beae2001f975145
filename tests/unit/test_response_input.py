"""Items of the Responses API: what a request sends is read as messages, and messages are written as items."""

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dialects.response_input import dereferenced, messages_of, references, require_answered_calls
from app.dialects.response_items import input_items, output_items, response_of
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Message, Passage, ToolCall
from tests.openai_schema import validate

CALL = ToolCall(id="call_1", name="read", arguments='{"path": "a"}')
CALL_ITEM = {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": '{"path": "a"}'}
OUTPUT_ITEM = {"type": "function_call_output", "call_id": "call_1", "output": "It says b."}
SOURCE = Passage(document_id="d", collection="c", title="T", chunk=0, text="x", score=1.0, start=0, end=1)


def user(content: str) -> Message:
    return Message(role="user", content=content)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user", "content": "hi"}, user("hi")),
        ({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}, user("hi")),
        ({"type": "message", "id": "msg_x", "status": "completed", "role": "user", "content": "hi"}, user("hi")),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]},
            user("ab"),
        ),
        ({"role": "system", "content": "Be brief."}, Message(role="system", content="Be brief.")),
        ({"role": "developer", "content": "Be brief."}, Message(role="system", content="Be brief.")),
        (
            {"role": "assistant", "content": [{"type": "output_text", "text": "It is 4.", "annotations": []}]},
            Message(role="assistant", content="It is 4."),
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            Message(role="assistant", content="No."),
        ),
        (CALL_ITEM | {"id": "fc_1", "status": "completed"}, Message(role="assistant", tool_calls=(CALL,))),
        (OUTPUT_ITEM, Message(role="tool", content="It says b.", tool_call_id="call_1")),
        (
            OUTPUT_ITEM | {"output": [{"type": "input_text", "text": "It says b."}]},
            Message(role="tool", content="It says b.", tool_call_id="call_1"),
        ),
        (
            {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'say "é"'},
            Message(
                role="assistant", tool_calls=(ToolCall(id="c", name="patch", arguments='{"input": "say \\"é\\""}'),)
            ),
        ),
        (
            {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
            Message(role="tool", content="ok", tool_call_id="c"),
        ),
    ],
)
def test_an_item_is_read_as_the_message_that_it_says(item: dict[str, Any], message: Message) -> None:
    """Ids, states, annotations and the like say nothing to a model."""
    assert messages_of([item]) == (message,)


@pytest.mark.parametrize(
    "reasoning",
    [
        {
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm. "}, {"type": "reasoning_text", "text": "4"}],
        },
        {"summary": [{"type": "summary_text", "text": "Hm. 4"}]},
        {"summary": [], "encrypted_content": "mindfu1.SG0uIDQ="},
    ],
)
def test_reasoning_is_taken_back_in_every_form(reasoning: dict[str, Any]) -> None:
    """It belongs to the answer behind it, the calls included: they are one message."""
    answer = {"role": "assistant", "content": "I read a."}
    items = [{"type": "reasoning", "id": "rs_1"} | reasoning, answer, CALL_ITEM, OUTPUT_ITEM]
    said, told = messages_of(items)
    assert said == Message(role="assistant", reasoning="Hm. 4", content="I read a.", tool_calls=(CALL,))
    assert told.role == "tool"


def test_parallel_calls_are_one_message_and_calls_after_results_another() -> None:
    """As the model made them."""
    second = CALL_ITEM | {"call_id": "call_2"}
    third = CALL_ITEM | {"call_id": "call_3"}
    said = messages_of([CALL_ITEM, second, OUTPUT_ITEM, OUTPUT_ITEM | {"call_id": "call_2"}, third])
    assert [[call.id for call in message.tool_calls] for message in said] == [["call_1", "call_2"], [], [], ["call_3"]]


def test_reasoning_without_an_answer_is_left_out() -> None:
    """A model must not see an empty turn of its own."""
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}
    assert messages_of([reasoning, {"role": "user", "content": "hi"}]) == (user("hi"),)


@pytest.mark.parametrize(
    ("item", "param", "text"),
    [
        ({"type": "telepathy"}, "input[0].type", "'telepathy' is none of custom_tool_call, "),
        ({"type": 3}, "input[0].type", "3 is none of"),
        ({"type": ["message"]}, "input[0].type", "is none of"),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0].type", "this server has no such tool"),
        ({"role": "tool", "content": "x"}, "input[0].role", "got 'tool'"),
        ({"role": "user"}, "input[0].content", "Missing required parameter: 'input[0].content'."),
        ({"role": "user", "content": 5}, "input[0].content", "got 5"),
        ({"role": "user", "content": ["hi"]}, "input[0].content[0]", "a part is an object (got 'hi')"),
        ({"type": "reasoning", "summary": ["hm"]}, "input[0].summary[0]", "valid dictionary"),
        ({"role": "user", "content": None}, "input[0].content", "got None"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "input[0].content[0].type", "'hologram' is none of"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text", "Missing required"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments", "Missing required"),
        (CALL_ITEM | {"arguments": {"path": "a"}}, "input[0].arguments", "valid string"),
        (CALL_ITEM | {"call_id": ""}, "input[0].call_id", "at least 1 character"),
        (OUTPUT_ITEM | {"output": None}, "input[0].output", "got None"),
        ({"type": "reasoning", "summary": [{}]}, "input[0].summary[0].text", "Missing required"),
        ({"type": "reasoning", "encrypted_content": "gAAAA"}, "input[0].encrypted_content", "not written by"),
        ({"type": "reasoning", "encrypted_content": "mindfu1.?"}, "input[0].encrypted_content", "not written by"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_path(item: dict[str, Any], param: str, text: str) -> None:
    """So that its sender finds it in a request of a hundred items."""
    with pytest.raises(InvalidRequest, match=r".") as refusal:
        messages_of([item])
    assert refusal.value.param == param
    assert text in str(refusal.value)


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_a_text_model_refuses_media_by_name(kind: str) -> None:
    """In messages and in the output of tools alike."""
    part = {"type": kind, "image_url": "data:image/png;base64,AAAA"}
    with pytest.raises(UnsupportedOption, match=r"'input\[0\]\.content\[0\]' is .*; the model reads text only"):
        messages_of([{"role": "user", "content": [part]}])
    with pytest.raises(UnsupportedOption, match="text only"):
        messages_of([OUTPUT_ITEM | {"output": [part]}])


def test_an_item_that_is_named_is_put_in() -> None:
    """Clients leave `type` out."""
    items = [{"type": "item_reference", "id": "msg_1"}, {"id": "fc_1"}, {"role": "user", "content": "hi"}]
    assert references(items) == {"msg_1", "fc_1"}
    found = {"msg_1": {"role": "user", "content": "a"}, "fc_1": CALL_ITEM}
    assert dereferenced(items, found) == (found["msg_1"], CALL_ITEM, items[2])
    with pytest.raises(InvalidRequest, match="Item with id 'fc_1' not found"):
        dereferenced(items, {"msg_1": found["msg_1"]})


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([OUTPUT_ITEM], "No tool call found for function call output with call_id call_1."),
        ([OUTPUT_ITEM, CALL_ITEM], "No tool call found for function call output with call_id call_1."),
        ([CALL_ITEM, {"role": "user", "content": "hi"}], "No tool output found for function call call_1."),
    ],
)
def test_calls_and_outputs_must_fit(items: list[dict[str, Any]], text: str) -> None:
    """In OpenAI's words."""
    with pytest.raises(InvalidRequest) as refusal:
        require_answered_calls(messages_of(items))
    assert (str(refusal.value), refusal.value.param) == (text, "input")


def test_an_answer_is_reasoning_then_a_message_then_calls() -> None:
    """Every item passes the published schema, and cites what the text cites."""
    answer = Message(role="assistant", reasoning="Hm.", content="So [1], and [7].", tool_calls=(CALL,))
    items = output_items(answer, "x", status="incomplete", sources=(SOURCE,), carried=True)
    assert [item["id"] for item in items] == ["rs_x_0", "msg_x_1", "fc_x_2"]
    assert [item["status"] for item in items] == ["completed", "completed", "incomplete"]
    assert items[0]["encrypted_content"] == "mindfu1.SG0u"
    assert items[1]["content"][0]["annotations"] == [
        {"type": "file_citation", "file_id": "d", "filename": "T", "index": 0}
    ]
    for item in items:
        validate("OutputItem", item)


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    """Clients read output[0]."""
    (item,) = output_items(Message(role="assistant"), "x", status="completed")
    assert item["content"][0]["text"] == ""


def test_a_call_of_a_custom_tool_has_its_text_as_input() -> None:
    """A call that was cut short shows what there is of it."""
    calls = (
        ToolCall(id="1", name="patch", arguments='{"input": "a\\nb"}'),
        ToolCall(id="2", name="patch", arguments='{"inp'),
        ToolCall(id="3", name="patch", arguments="[]"),
    )
    items = output_items(Message(role="assistant", tool_calls=calls), "x", status="completed", customs={"patch"})
    assert [item["input"] for item in items] == ["a\nb", '{"inp', "[]"]
    for item in items:
        validate("OutputItem", item)


def test_an_id_tells_its_response() -> None:
    """Of output and of input items alike; what is not ours tells none."""
    items = (*output_items(Message(role="assistant"), "ab", status="completed"), *input_items([user("hi")], "ab"))
    assert [response_of(item["id"]) for item in items] == ["resp_ab", "resp_ab"]
    assert [response_of(other) for other in ("", "msg", "msg_1", "msg__", "_a_1")] == [None, None, None, None, None]


texts = st.text(max_size=8)
ids = st.text(string.ascii_lowercase, min_size=1, max_size=4)
arguments = st.dictionaries(texts, texts, max_size=2).map(json.dumps)
calls = st.builds(ToolCall, id=ids, name=ids, arguments=arguments)
assistants = st.builds(
    Message,
    role=st.just("assistant"),
    content=texts,
    reasoning=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
).filter(lambda message: bool(message.content or message.tool_calls))
others = st.builds(Message, role=st.sampled_from(["system", "user"]), content=texts)
results = st.builds(Message, role=st.just("tool"), content=texts, tool_call_id=ids)


@given(st.lists(others | results | assistants, max_size=6))
def test_messages_written_as_items_are_read_as_the_same(messages: list[Message]) -> None:
    """Two answers in a row are one, as items do not tell where the first ended; all else comes back."""
    apart = [message for pair in zip(messages, [user("-")] * len(messages), strict=True) for message in pair]
    items = input_items(apart, "x")
    assert messages_of(items) == tuple(apart)
    assert len({item["id"] for item in items}) == len(items)
    validate(
        "ResponseItemList", {"object": "list", "data": list(items), "has_more": False, "first_id": "", "last_id": ""}
    )
