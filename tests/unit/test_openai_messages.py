"""The messages of chat completions: what becomes of each, what is refused and where, and the way back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.openai_messages import ChatMessage, external, internal
from app.errors import InvalidRequest, UnsupportedOption
from app.messages import Message, ToolCall

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKED = {"role": "assistant", "tool_calls": [CALL]}


def read(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return internal([ChatMessage.model_validate(message) for message in messages])


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"role": "developer", "content": "Be brief."}, Message(role="system", content="Be brief.")),
        ({"role": "user", "content": "hi", "name": "ada"}, Message(role="user", content="hi", name="ada")),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            Message(role="user", content="ab"),
        ),
        ({"role": "assistant"}, Message(role="assistant")),
        ({"role": "assistant", "content": None, "refusal": "No."}, Message(role="assistant", content="No.")),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            Message(role="assistant", content="No."),
        ),
        (
            {"role": "assistant", "content": "4", "reasoning_content": "2 and 2", "annotations": [], "audio": None},
            Message(role="assistant", content="4", reasoning="2 and 2"),
        ),
        (
            {"role": "assistant", "tool_calls": [CALL | {"index": 0}]},
            Message(role="assistant", tool_calls=(ToolCall(id="c1", name="f", arguments="{}"),)),
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            Message(role="user", content="a"),
        ),
    ],
)
def test_a_message_of_any_client_becomes_ours(sent: dict[str, Any], message: Message):
    """Roles, parts, absent content, reasoning, refusals, calls with a stray index, marks of caches."""
    assert read(sent) == (message,)


def test_a_result_answers_the_call_with_its_id():
    """With the function's name where the client sends it, as Mistral's does."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "42", "name": "f"}
    assert read(ASKED, result)[1] == Message(role="tool", content="42", name="f", tool_call_id="c1")


def test_older_calls_and_results_get_the_ids_that_they_lack():
    """A result belongs to the latest call of its function before it."""
    older = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "42"}
    first, second = (Message(role="tool", content="42", name="f", tool_call_id=f"call_{n}") for n in (0, 2))
    made = read(older, result, older, result)
    assert (made[1], made[3]) == (first, second)
    assert [made[n].tool_calls[0].id for n in (0, 2)] == ["call_0", "call_2"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "system", "content": None}], "messages[0].content"),
        ([ASKED, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        ([ASKED, {"role": "tool", "content": "x", "tool_call_id": "c2"}], "messages[1].tool_call_id"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c1"}, ASKED], "messages[0].tool_call_id"),
        ([{"role": "function", "content": "x"}], "messages[0].name"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages[0].name"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "x", "tool_call_id": "c1"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x", "reasoning_content": "y"}], "messages[0].reasoning_content"),
    ],
)
def test_a_message_has_what_its_role_needs_and_nothing_else(messages: list[dict[str, Any]], param: str):
    """A result that nobody asked for, a question without words, a user's tool call: named by their place."""
    with pytest.raises(InvalidRequest) as refusal:
        read(*messages)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, ".content[1]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}, ".content[0]"),
        ({"role": "assistant", "audio": {"id": "a"}}, ".audio"),
        ({"role": "assistant", "content": "Once", "prefix": True}, ".prefix"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]}, ".content[0].bold"),
        ({"role": "assistant", "tool_calls": [CALL | {"then": 1}]}, ".tool_calls[0].then"),
    ],
)
def test_what_a_text_model_would_not_see_is_refused_where_it_stands(message: dict[str, Any], param: str):
    """Images, audio, files; and fields that might mean something to another server."""
    with pytest.raises(UnsupportedOption) as refusal:
        read(message)
    assert refusal.value.param == f"messages[0]{param}"


texts = st.text(max_size=9)
calls = st.lists(st.builds(ToolCall, id=texts, name=st.text(min_size=1, max_size=5), arguments=texts), max_size=2)
asking = st.builds(Message, role=st.sampled_from(["system", "user"]), content=texts, name=st.none() | texts)
answering = st.builds(Message, role=st.just("assistant"), content=texts, reasoning=texts, tool_calls=calls.map(tuple))
chats = st.lists(asking | answering, max_size=4)


@settings(max_examples=100, deadline=None)
@given(chats, texts)
def test_there_and_back_loses_nothing(chat: list[Message], result: str):
    """Any chat of ours, each call answered, is the same again after it was told to a client and sent back."""
    answered = [
        part
        for message in chat
        for part in (
            message,
            *(Message(role="tool", content=result, tool_call_id=call.id) for call in message.tool_calls),
        )
    ]
    assert read(*(external(message) for message in answered)) == tuple(answered)
