"""Let another adapter answer, everywhere and without a failed request; and go back.

A promotion has two steps. First the version is staged: every engine loads it, and nobody is answered by it yet. Where
one of them cannot, it ends here, and nothing was changed for anybody. Then it becomes the champion: gateways name it
from then on, answers that run finish on what they began with, and the one before stays loaded, so that a rollback is
the second step alone. Both return when every gateway that is alive goes by the new state.
"""

import asyncio
import time
from typing import NamedTuple

from app.desired import BARE, Adapter, Serving
from app.errors import Conflict, NotPromoted
from app.messages import Strict
from app.registry import Kind, Member, Registry

STAGE_S = 120.0  # that engines may take to load an adapter
SWITCH_S = 15.0  # that gateways may take: longer than one counts as alive without a word
LOOK_S = 0.02


class Promoted(Strict):
    """Who answers now. champion, previous: None is the bare base. engines: have it loaded; gateways: go by it."""

    model: str
    champion: str | None
    previous: str | None
    revision: int
    engines: int
    gateways: int
    seconds: float


async def promote(
    registry: Registry, model: str, version: str, *, force: bool = False, reason: str | None = None
) -> Promoted:
    """Let an adapter answer for its model's name. force: although the gates did not pass it, which is recorded.

    Raises NotFound; NotPromoted where the gates blocked it or an engine cannot load it; Conflict while another
    promotion runs.
    """
    started = time.monotonic()
    adapter = await registry.adapter(model, version)
    _check(adapter, force=force)
    async with registry.alone(model):
        async with registry.change() as editing:
            before = await editing.of(model)
            await editing.stage(model, version)
        problem = await _staged(registry, adapter, editing.revision)
        if problem:
            async with registry.change() as editing:
                await editing.stage(model, None)
            raise NotPromoted(adapter.name, problem)
        previous = before.previous if before.champion == version else before.champion
        after = Serving(model=model, champion=version, previous=previous)
        line = Line("promote", forced=adapter.verdict != "passed", reason=reason)
        return await _switch(registry, before, after, line, started)


async def rollback(registry: Registry, model: str, *, reason: str | None = None) -> Promoted:
    """Let the one before answer again. A second rollback undoes the first. Raises Conflict where there is none."""
    started = time.monotonic()
    async with registry.alone(model):
        before = (await registry.desired()).of(model)
        if before.champion is None and before.previous is None:
            message = f"No adapter of {model} was ever promoted: there is nothing to go back to."
            raise Conflict(message)
        after = Serving(model=model, champion=before.previous, previous=before.champion)
        return await _switch(registry, before, after, Line("rollback", forced=False, reason=reason), started)


class Line(NamedTuple):
    """What the history says beside who answered."""

    kind: Kind
    forced: bool
    reason: str | None


def _check(adapter: Adapter, *, force: bool) -> None:
    if adapter.retired_at is not None:
        raise NotPromoted(adapter.name, f"it was retired on {adapter.retired_at:%Y-%m-%d}.")
    if adapter.verdict == "passed" or force:
        return
    if adapter.verdict == "blocked":
        raise NotPromoted(adapter.name, f"the gates blocked it: {'; '.join(adapter.reasons)}. --force overrides them.")
    raise NotPromoted(adapter.name, "it was never evaluated. Run the evaluation, or promote it with --force.")


async def _staged(registry: Registry, adapter: Adapter, revision: int) -> str:
    """Wait until every engine that has the base loaded has the adapter, too. Returns why not; empty: all have it."""
    deadline = time.monotonic() + STAGE_S
    while True:
        engines = [member for member in await registry.members() if member.part == "engine"]
        for engine in engines:
            held = engine.models.get(adapter.model)
            if held and engine.revision >= revision and adapter.version in held.failed:
                return f"an engine cannot load it: {held.failed[adapter.version]}"
        waiting = [engine for engine in engines if not _holds(engine, adapter, revision)]
        if not waiting:
            return ""
        if time.monotonic() > deadline:
            return f"{len(waiting)} of {len(engines)} engines had not loaded it after {STAGE_S:.0f} s."
        await asyncio.sleep(LOOK_S)


def _holds(engine: Member, adapter: Adapter, revision: int) -> bool:
    """Whether an engine is ready. One that has put the base away loads the adapter together with it."""
    held = engine.models.get(adapter.model)
    return engine.revision >= revision if held is None else adapter.version in held.loaded


async def _switch(registry: Registry, before: Serving, after: Serving, line: Line, started: float) -> Promoted:
    revision = await _serve(registry, before, after, line)
    deadline = time.monotonic() + SWITCH_S
    while True:
        members = await registry.members()
        gateways = [member for member in members if member.part == "gateway"]
        if all(gateway.revision >= revision for gateway in gateways):
            break
        if time.monotonic() > deadline:
            late = sum(gateway.revision < revision for gateway in gateways)
            problem = f"{late} of {len(gateways)} gateways did not take it in within {SWITCH_S:.0f} s."
            await _serve(registry, after, before, Line("rollback", forced=False, reason=problem))
            raise NotPromoted(f"{after.model}@{after.champion or BARE}", problem)
        await asyncio.sleep(LOOK_S)
    return Promoted(
        model=after.model,
        champion=after.champion,
        previous=after.previous,
        revision=revision,
        engines=sum(member.part == "engine" for member in members),
        gateways=len(gateways),
        seconds=time.monotonic() - started,
    )


async def _serve(registry: Registry, before: Serving, after: Serving, line: Line) -> int:
    """Make it the desired state. Returns its revision."""
    async with registry.change() as editing:
        await editing.serve(after.model, after.champion, after.previous)
        await editing.note(
            line.kind, after.model, after.champion, before.champion, forced=line.forced, reason=line.reason
        )
    return editing.revision
