"""The calls of one answer: what runs together, what is remembered, and what the model is told when something fails."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from app.messages import ToolCall
from app.tools.context import Context
from app.tools.failures import ToolFailed
from app.tools.outcome import Outcome, outcome, refused
from app.tools.registry import from_function
from app.tools.runner import MOST_CALLS, Runner, ToolRun

ANY: Any = None
CONTEXT = Context(ANY, ANY, ANY, timeout_s=5)


class Tools:
    """Notes what is made. `look` waits for a second one of its kind, so it only ends beside another."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []
        self.two_at_once = asyncio.Event()

    async def make(self, name: str, arguments: str) -> Outcome:
        self.made.append((name, arguments))
        if name == "fail":
            return refused("no")
        if name == "look":
            if sum(1 for made, _ in self.made if made == "look") > 1:
                self.two_at_once.set()
            await self.two_at_once.wait()
        return Outcome(succeeded=True, text=f'"{len(self.made)}"')


def runner(tools: Tools, **more: Any) -> Runner:
    reads = {"look": True, "read": True, "fail": True, "write": False}
    return Runner(reads, tools.make, **more)


def calls(*names: str, arguments: str = "{}") -> list[ToolCall]:
    return [ToolCall(id=f"c{number}", name=name, arguments=arguments) for number, name in enumerate(names)]


async def runs(runner: Runner, *made: ToolCall) -> list[ToolRun]:
    return [run async for run in runner.run(made, 1)]


async def test_calls_that_only_look_run_side_by_side_and_are_told_in_order():
    """Each of these two ends only while the other one runs."""
    first, second = calls("look", "look")
    second = second.model_copy(update={"arguments": '{"x": 1}'})
    async with asyncio.timeout(5):
        told = await runs(runner(Tools()), first, second)
    assert [(run.id, run.status) for run in told] == [("c0", "success"), ("c1", "success")]


async def test_the_same_call_is_made_once():
    """In one turn and in a later one, however its arguments are written; a failure is tried again."""
    tools = Tools()
    running = runner(tools)
    written = [
        ToolCall(id=id_, name="read", arguments=text)
        for id_, text in (("a", '{"x":1,"y":2}'), ("b", '{"y": 2, "x": 1}'))
    ]
    first = await runs(running, *written)
    second = await runs(running, written[0].model_copy(update={"id": "c"}))
    assert [(run.id, run.result, run.cached) for run in first + second] == [
        ("a", '"1"', False), ("b", '"1"', True), ("c", '"1"', True),
    ]  # fmt: skip
    await runs(running, *calls("fail"))
    await runs(running, *calls("fail"))
    assert [name for name, _ in tools.made] == ["read", "fail", "fail"]


async def test_a_call_that_changes_something_runs_alone_and_ends_what_was_remembered():
    """What was read before it may be wrong after it, and it is made as often as it is asked for."""
    tools = Tools()
    told = await runs(runner(tools), *calls("read", "write", "write", "read"))
    assert [name for name, _ in tools.made] == ["read", "write", "write", "read"]
    assert not any(run.cached for run in told)


async def test_only_tools_that_were_offered_are_run():
    """The model is told which there are; so it is for the calls beyond a turn's and an answer's most."""
    tools = Tools()
    (unknown,) = await runs(runner(tools), *calls("rm"))
    assert unknown.result == '{"status":"error","error":"There is no tool \'rm\'. There are: fail, look, read, write."}'
    many = await runs(runner(tools), *calls(*["write"] * (MOST_CALLS + 1)))
    assert [run.status for run in many] == ["success"] * MOST_CALLS + ["error"]
    limited = runner(tools, max_calls=1)
    assert [run.status for run in await runs(limited, *calls("write", "write"))] == ["success", "error"]
    assert [run.status for run in await runs(limited, *calls("write"))] == ["error"]
    assert tools.made == [("write", "{}")] * (MOST_CALLS + 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ('{"hostname": "example.org"}', "look(example.org)"),
        ('{"path": "/a", "n": 3, "deep": true}', "look(/a, 3, true)"),
        ("", "look()"),
        ("{", "look(?)"),
        (f'"{"x" * 81}"', f"look({'x' * 80}…)"),
    ],
)
def test_a_run_is_told_in_a_line(arguments, line):
    """As `tools_used` tells it."""
    assert (
        ToolRun(id="c", name="look", arguments=arguments, status="success", result="", round=1, duration_s=0).line()
        == line
    )


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model():
    """A refusal as it is, a bug by its kind, a tool that hangs by its time, a result that is too long by its size."""

    def picky() -> str:
        """Refuse."""
        raise ToolFailed("not today")

    def broken() -> str:
        """Fail."""
        raise KeyError("/secret/path")

    async def slow() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    def talkative() -> str:
        """Tell much."""
        return "x" * 100

    expected = {
        picky: "not today",
        broken: "'broken' failed: KeyError.",
        slow: "'slow' did not answer within 0.05 s.",
        talkative: "The result has 113 characters, at most 99 are told. Ask for less.",
    }
    for function, reason in expected.items():
        context = replace(CONTEXT, timeout_s=0.05) if function is slow else CONTEXT
        assert await outcome(from_function(function), "", context, max_chars=99) == refused(reason)


async def test_a_result_is_told_as_json():
    """Numbers that JSON does not have are null; what JSON cannot say is a failure of the tool."""

    def odd() -> dict[str, Any]:
        """Tell odd things."""
        return {"value": float("nan"), "path": "ä"}

    def wrong() -> dict[str, Any]:
        """Tell what cannot be told."""
        return {"value": object()}

    assert await outcome(from_function(odd), "", CONTEXT, max_chars=99) == Outcome(True, '{"value":null,"path":"ä"}')
    assert (await outcome(from_function(wrong), "", CONTEXT, max_chars=99)).text.startswith('{"status":"error"')
