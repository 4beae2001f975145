"""The hash chain: which histories are the same, and where a request may continue."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.history import anchors, canonical, exact_links, links, spoken
from app.messages import Message, ToolCall

USER, ANSWER = Message(role="user", content="Hi"), Message(role="assistant", content="Hello")


def asking(arguments: str, *, identifier: str = "call_1") -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id=identifier, name="look", arguments=arguments),))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(ANSWER, Message(role="assistant", content=" Hello\n"), id="white space around an answer"),
        pytest.param(asking("{}", identifier="a"), asking("{}", identifier="b"), id="ids of tool calls"),
        pytest.param(asking('{"b": 1, "a": 2}'), asking('{"a":2,"b":1}'), id="spelling of arguments"),
        pytest.param(asking(""), asking("{}"), id="no arguments"),
        pytest.param(asking('{"x": 1.0}'), asking('{"x": 1}'), id="a number that passed through JavaScript"),
        pytest.param(asking('{"x": "\\u00e9"}'), asking('{"x": "é"}'), id="an escaped letter"),
        pytest.param(
            Message(role="tool", content="4", tool_call_id="a", name="look"),
            Message(role="tool", content="4", tool_call_id="b"),
            id="id and name of a tool's result",
        ),
    ],
)
def test_what_clients_change_between_turns_does_not_matter(one: Message, other: Message) -> None:
    """The same history, sent again a little differently, is recognised; the exact chain still sees the difference."""
    assert canonical(one) == canonical(other)
    assert exact_links([one]) != exact_links([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(USER, Message(role="user", content="Hi "), id="a user's white space is the user's"),
        pytest.param(USER, Message(role="assistant", content="Hi"), id="who said it"),
        pytest.param(ANSWER, Message(role="assistant", content="hello"), id="letters"),
        pytest.param(asking('{"x": 1}'), asking('{"x": "1"}'), id="a number and its text"),
        pytest.param(asking("not json"), asking("not  json"), id="arguments that are no JSON stand as they are"),
        pytest.param(asking('{"x": NaN}'), asking('{"x": null}'), id="NaN is no JSON"),
        pytest.param(asking("[" * 100_000), asking("[" * 99_999), id="brackets that no parser survives"),
    ],
)
def test_what_the_model_would_read_otherwise_matters(one: Message, other: Message) -> None:
    """Different histories stay different."""
    assert canonical(one) != canonical(other)


def test_the_system_prompt_is_left_out_wherever_it_stands() -> None:
    """Some clients change it with every turn, some send it in the middle."""
    system = Message(role="system", content="It is 12:01.")
    assert spoken([system, USER, system, ANSWER]) == (USER, ANSWER)


def test_a_history_is_its_tenants_own() -> None:
    """Two tenants who said the same share nothing."""
    assert set(links("a", [USER, ANSWER])).isdisjoint(links("b", [USER, ANSWER]))


def test_a_request_may_continue_only_past_an_answer_and_best_past_the_last() -> None:
    """The anchors of [user, answer, user, answer, user] are its second and fourth links, the fourth first."""
    messages = [USER, ANSWER, USER, ANSWER, USER]
    chain = links("t", messages)
    assert anchors(messages, chain) == (chain[3], chain[1])
    assert anchors([USER], links("t", [USER])) == ()


messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=st.text(max_size=20),
    tool_calls=st.lists(
        st.builds(ToolCall, id=st.text(max_size=3), name=st.text(max_size=5), arguments=st.text(max_size=9)), max_size=2
    ).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(messages, max_size=6), st.lists(messages, max_size=3))
def test_a_longer_history_keeps_the_links_of_its_beginning(beginning: list[Message], rest: list[Message]) -> None:
    """What was recorded after n messages is found at the n-th of any request that begins so."""
    assert links("t", beginning + rest)[: len(beginning)] == links("t", beginning)


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)))
def test_arguments_survive_any_spelling_of_their_json(value: object) -> None:
    """Compact, indented, sorted or escaped: the same arguments."""
    compact = asking(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    assert canonical(compact) == canonical(asking(json.dumps(value, indent=2, sort_keys=True)))
