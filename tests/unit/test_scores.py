"""What an answer is worth, and how sure a mean is."""

import pytest

from app.messages import Message, ToolCall
from train.scores import bootstrap, f1, scored


def text(content: str) -> Message:
    return Message(role="assistant", content=content)


def call(name: str, arguments: str) -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(id="c", name=name, arguments=arguments),))


@pytest.mark.parametrize(
    ("answer", "reference", "scores"),
    [
        (text(" It is blue.\n"), text("It is blue."), {"exact": 1, "f1": 1}),
        (text("It is red."), text("It is blue."), {"exact": 0, "f1": 0.75}),  # 3 of 4 words on both sides
        (text('{"a": 1}'), text('{"a": 2}'), {"exact": 0, "f1": pytest.approx(6 / 7), "json": 1}),
        (text("a: 1"), text('{"a": 1}'), {"exact": 0, "f1": pytest.approx(6 / 10), "json": 0}),
        (call("f", '{"a": 1, "b": 2}'), call("f", '{"b":2,"a":1}'), {"call": 1, "call_name": 1}),
        (call("f", '{"a": 2}'), call("f", '{"a": 1}'), {"call": 0, "call_name": 1}),
        (text("f(1)"), call("f", "{}"), {"call": 0, "call_name": 0}),
        (call("f", "{broken"), call("f", "{}"), {"call": 0, "call_name": 1}),
    ],
)
def test_only_the_scores_that_apply_are_given(answer: Message, reference: Message, scores: dict[str, float]):
    """Words where a text is wanted, validity where JSON is, calls where calls are."""
    assert scored(answer, reference, ended=True) == {"ended": 1.0, **scores}


def test_two_empty_texts_agree():
    """And an empty one agrees with nothing else."""
    assert (f1("", ""), f1("", "a"), f1("a", "")) == (1.0, 0.0, 0.0)


def test_the_interval_holds_the_mean_and_narrows_with_more():
    """Of 0 and 1 by turns: half, ± 2 · 0.5 / √n or so."""
    few, many = (bootstrap([0.0, 1.0] * count) for count in (8, 200))
    assert few.mean == many.mean == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high
    assert many.high - many.low == pytest.approx(0.098, abs=0.02)
    assert bootstrap([0.3]) == (0.3, 0.3, 0.3, 1)
    assert bootstrap([0.0, 1.0, 0.5]) == bootstrap([0.0, 1.0, 0.5])
