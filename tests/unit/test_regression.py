"""The regression set: what is checked of an answer, and what a broken item is."""

from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.messages import Message, ToolCall
from train import regression
from train.regression import Expect, Item
from train.serving import Said


def said(text: str = "", *, calls: tuple[str, ...] = (), ended: bool = True, problem: str | None = None) -> Said:
    made = tuple(ToolCall(id="c", name=name, arguments="{}") for name in calls)
    return Said(Message(role="assistant", content=text, tool_calls=made), ended, 3, 0.1, 0.2, problem)


@pytest.mark.parametrize(
    ("expect", "answer", "failure"),
    [
        (Expect(contains=("Blue",)), said("it is blue"), None),
        (Expect(contains=("blue",)), said("it is red"), "it lacks 'blue'"),
        (Expect(lacks=("<|im_end|>",)), said("ok<|im_end|>"), "it has '<|im_end|>'"),
        (Expect(matches=r"^\d+$"), said("12"), None),
        (Expect(matches=r"^\d+$"), said("twelve"), r"it does not match ^\d+$"),
        (Expect(json_object=True), said("{}"), None),
        (Expect(json_object=True), said("no"), "it is no JSON"),
        (Expect(call="f"), said(calls=("f",)), None),
        (Expect(call="f"), said("f()"), "it calls nothing"),
        (Expect(call=""), said("hi", calls=("f",)), "it calls f"),
        (Expect(max_chars=3), said("four"), "it has 4 characters, of 3"),
        (Expect(), said("and on and on", ended=False), "it does not end"),
        (Expect(ends=False), said("and on and on", ended=False), None),
        (Expect(), said(problem="the prompt is too long"), "the prompt is too long"),
    ],
)
def test_every_check_says_what_is_wrong(expect: Expect, answer: Said, failure: str | None):
    """Or nothing, where nothing is."""
    assert expect.failure(answer) == failure


def test_an_item_is_broken_where_only_the_base_passes():
    """What neither can do tells nothing of the tuning."""
    item = Item(id="i", about="a", messages=(Message(role="user", content="?"),), expect=Expect(contains=("yes",)))
    yes, no = said("yes"), said("no")
    pairs = ((yes, no), (no, yes), (no, no), (yes, yes))
    broken = [regression.compared([item], [base], [tuned])[0].broken for base, tuned in pairs]
    assert broken == [True, False, False, False]


def test_the_set_that_comes_along_is_one():
    """Every item has a name of its own, passages where it asks for them, and something to check."""
    items = regression.read(regression.OWN)
    assert len(items) >= 15
    assert any("<sources>" in item.question().messages[-1].content for item in items)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2"),
        ('{"id": "a", "about": "b", "messages": [], "expect": {}}', "messages"),
        ('{"id": "a", "about": "b", "messages": [{"role": "user"}], "expect": {"contain": ["x"]}}', "contain"),
        ('{"id": "a", "about": "b", "messages": [{"role": "user"}], "expect": {"matches": "("}}', "expect"),
        ('{"id": "ok", "about": "b", "messages": [{"role": "user"}], "expect": {}}', "is there already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, reason: str):
    """With its number and what is wrong."""
    good = '{"id": "ok", "about": "b", "messages": [{"role": "user"}], "expect": {}}'
    (tmp_path / "set.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InvalidRequest, match="line 2") as refusal:
        regression.read(tmp_path / "set.jsonl")
    assert reason in str(refusal.value)
