"""What the gateway makes of the tools' process, however that fares."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from app.errors import Overloaded, ScopeMissing, Unavailable, UnsupportedOption
from app.keyring import Caller
from app.messages import Delta, Done, End, Generate, Message, RagOptions, Tool, ToolCall, ToolCallDelta
from app.settings import McpSettings, RagSettings, ToolSettings
from app.tools.offer import Offered, Whose
from app.tools.outcome import Outcome
from deployments.tooling import Tooling
from tests.fakes import DONE, Handle

LOOK = Offered(tool=Tool(name="look"), reads=True)
CALL = Delta("", 1, tool_calls=(ToolCallDelta(0, "{}", id="c", name="look"),))
CALLS = (ToolCall(id="c", name="look", arguments="{}"),)
ASKED = Generate(request_id="r", model="m", messages=(Message(role="user", content="hi"),), tools=(LOOK.tool,))


async def offered() -> tuple[Offered, ...]:
    return (LOOK,)


async def told(run: Any, settings: ToolSettings | None = None) -> str:
    """What the model is told of a call, where the tools' process does `run`."""
    tools: Any = Handle(offered=offered, run=run)
    asking = Tooling(tools, settings or ToolSettings(), RagSettings(), slack_s=0.02)
    kit = await asking.kit(Caller(), names=True)
    said = [[CALL, Done((End("tool_calls"),), DONE.usage, DONE.timings)], [DONE]]

    async def generate(_: Generate) -> Any:
        for item in said.pop(0):
            yield item

    assert kit.loop
    loop = kit.loop(generate)
    _ = [item async for item in loop.answer(ASKED)]
    return loop.runs[0].result


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RayActorError(), "The tool process is not available: its process ended and is being replaced"),
        (
            RayTaskError("f", "remote traceback", Unavailable("retriever", "gone")),
            "The retriever is not available: gone",
        ),
        (RayTaskError("f", "remote traceback", Overloaded(9, 9, 1.0)), "9"),
        (RayTaskError("f", "remote traceback", OSError("disk full")), "'look' failed: RayTaskError."),
    ],
)
async def test_a_process_that_fails_is_told_to_the_model(failure, reason):
    """And ends no answer; the traceback of another process is nobody's to see."""

    async def run(*_: object) -> Outcome:
        raise failure

    result = await told(run)
    assert result.startswith('{"status":"error","error":"')
    assert reason in result
    assert "traceback" not in result


async def test_a_process_that_hangs_is_given_up():
    """After the longest time that a call may take, and some more."""

    async def run(*_: object) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    slow = McpSettings(command=("x",), timeout_s=0.03)
    assert "did not answer within 0.05 s" in await told(run, ToolSettings(timeout_s=0.01, mcp={"slow": slow}))


async def test_a_call_is_made_for_the_caller_and_in_the_requests_collections():
    """Those of the settings where it names none."""
    made = []

    async def run(whose: Whose, name: str, arguments: str) -> Outcome:
        made.append((whose.tenant, whose.collections, name, arguments))
        return Outcome(succeeded=True, text="{}")

    tools: Any = Handle(offered=offered, run=run)
    asking = Tooling(tools, ToolSettings(), RagSettings(collections=("a", "b")))
    for rag in (None, False, RagOptions(top_k=2), RagOptions(collections=("c",))):
        kit = await asking.kit(Caller(tenant="t"), ["l*"], rag=rag)
        assert kit.tools == (LOOK.tool,)
        assert kit.loop
        _ = [run async for run in kit.loop(lambda _: None)._runner.run(CALLS, 1)]  # type: ignore[arg-type,return-value]
    assert [collections for _, collections, _, _ in made] == [("a", "b")] * 3 + [("c",)]
    assert {(tenant, name, arguments) for tenant, _, name, arguments in made} == {("t", "look", "{}")}


async def test_tools_are_for_who_asks_and_may():
    """Where there are any. Whoever does not ask is refused nothing."""
    tools: Any = Handle(offered=offered)
    on, off = (Tooling(handle, ToolSettings(), RagSettings()) for handle in (tools, None))
    plain = Caller(scopes=frozenset({"chat"}))
    for names in (None, False, []):
        assert (await on.kit(plain, names)).tools == () == (await off.kit(Caller(), names)).tools
    with pytest.raises(ScopeMissing, match="'tools'"):
        await on.kit(plain, names=True)
    with pytest.raises(UnsupportedOption, match="'enable_tools' asks for tools, and this server runs none"):
        await off.kit(Caller(), names=True, param="enable_tools")
    assert (await on.kit(Caller(scopes=frozenset({"admin"})), names=True)).tools == (LOOK.tool,)
    assert (await off.offered(), await off.servers()) == ((), {})
