"""How the demo model's answers are judged."""

import pytest

from train import demo_tools
from train.demo_evaluate import Answer, calls, judged_call
from train.demo_examples import NO_SOURCES, Example

RIGHT = demo_tools.text("get_weather", {"city": "Oslo"})


def example(answer: str, kind: str) -> Example:
    return Example((), "What is the weather in Oslo?", (), None, answer, kind)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (RIGHT, (True, True, True)),
        (demo_tools.text("get_weather", {"city": "Bergen"}), (True, True, False)),
        (demo_tools.text("get_time", {"city": "Oslo"}), (True, False, False)),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city"}}\n</tool_call>', (False, False, False)),
        (f"{RIGHT}\n{RIGHT}", (False, False, False)),
        ("It rains.", (False, False, False)),
    ],
)
def test_a_call_is_judged_by_its_form_its_name_and_its_arguments(said: str, expected: tuple[bool, ...]) -> None:
    """One call, JSON with a name and an object of arguments; then the function; then every argument."""
    judged = judged_call(example(RIGHT, "tool call"), Answer([], said, stopped=True))
    assert tuple(judged.values()) == expected


def test_an_answer_that_did_not_stop_is_not_well_formed() -> None:
    """A client would wait for its end."""
    assert not judged_call(example(RIGHT, "tool call"), Answer([], RIGHT, stopped=False))["well-formed"]


def test_where_no_tool_fits_any_call_counts_against_the_model() -> None:
    """A broken one too."""
    asked = example(NO_SOURCES, "no tool call")
    assert judged_call(asked, Answer([], "<tool_call>\n{", stopped=False)) == {"called all the same": True}
    assert judged_call(asked, Answer([], NO_SOURCES, stopped=True)) == {"called all the same": False}


def test_what_offers_no_tools_is_not_judged_as_a_call() -> None:
    """Quotes are exact or not."""
    assert judged_call(example("Hello!", "smalltalk"), Answer([], "Hello!", stopped=True)) == {}


@pytest.mark.parametrize("body", ['["get_weather"]', '{"name": "x"}', '{"name": "x", "arguments": []}', "{"])
def test_what_is_no_object_with_a_name_and_arguments_is_no_call(body: str) -> None:
    """Clients could not run it."""
    assert calls(f"<tool_call>\n{body}\n</tool_call>") == []
