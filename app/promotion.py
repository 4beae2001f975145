"""Let another adapter answer, everywhere and without a failed request; try it out first; and go back.

A promotion has two steps. First the version is staged: every engine loads it, and nobody is answered by it yet. Where
one of them cannot, it ends here, and nothing was changed for anybody. Then it becomes the champion: gateways name it
from then on, answers that run finish on what they began with, and the one before stays loaded, so that a rollback is
the second step alone. A trial begins by the same two steps, and a rollback ends it. All of them return when every
gateway that is alive goes by the new state.

Whatever dies in between, the desired state is whole: it changes in one transaction, or not at all. A promotion whose
PostgreSQL goes away waits for it, up to its deadlines.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from app.desired import BARE, Adapter, Serving, Trial, TrialKind
from app.errors import Conflict, NotPromoted, Unavailable
from app.messages import Strict
from app.registry import Kind, Member, Registry

STAGE_S = 120.0  # that engines may take to load an adapter
SWITCH_S = 15.0  # that gateways may take: longer than one counts as alive without a word
LOOK_S = 0.02
AGAIN_S = 0.5  # while PostgreSQL is away
BACK_S = 5.0  # until all have spoken again: each looks once a second


class Promoted(Strict):
    """Who answers now. champion, previous: None is the bare base. engines: have it loaded; gateways: go by it."""

    model: str
    champion: str | None
    previous: str | None
    trial: Trial | None = None
    revision: int
    engines: int
    gateways: int
    seconds: float


async def promote(
    registry: Registry, model: str, version: str, *, force: bool = False, reason: str | None = None
) -> Promoted:
    """Let an adapter answer for its model's name; a trial ends. force: although the gates did not pass it, which is
    recorded.

    Raises NotFound; NotPromoted where the gates blocked it or an engine cannot load it; Conflict while another
    promotion runs.
    """
    started = time.monotonic()
    adapter = await registry.adapter(model, version)
    _check(adapter, force=force)
    await _check_memory(registry, adapter)
    async with registry.alone(model):
        before = await _load(registry, adapter)
        previous = before.previous if before.champion == version else before.champion
        previous = None if await registry.tainted(model, previous) else previous
        after = Serving(model=model, champion=version, previous=previous)
        line = Line("promote", version, before.champion, forced=adapter.verdict != "passed", reason=reason)
        return await _switch(registry, before, after, line, started)


async def try_out(
    registry: Registry,
    model: str,
    version: str,
    kind: TrialKind,
    share: float,
    *,
    force: bool = False,
    reason: str | None = None,
) -> Promoted:
    """Have an adapter on trial, in the place of one that was until now. share: of the conversations, above 0, up to 1.

    A canary answers people, so that it needs what a promotion needs; a shadow does not. Raises as `promote`, and
    Conflict for what answers already.
    """
    started = time.monotonic()
    adapter = await registry.adapter(model, version)
    _check(adapter, force=force or kind == "shadow")
    await _check_memory(registry, adapter)
    async with registry.alone(model):
        before = await _load(registry, adapter)
        if before.champion == version:
            async with registry.change() as editing:
                await editing.stage(model, None)
            raise Conflict(f"{adapter.name} answers for {model} already: there is nothing to try.")
        trial = Trial(version=version, kind=kind, share=share, since=datetime.now(UTC))
        after = Serving(model=model, champion=before.champion, previous=before.previous, trial=trial)
        forced = kind == "canary" and adapter.verdict != "passed"
        line = Line(kind, version, before.champion, forced=forced, reason=reason, share=share)
        return await _switch(registry, before, after, line, started)


async def rollback(registry: Registry, model: str, *, reason: str | None = None, only: str | None = None) -> Promoted:
    """End the trial; or where there is none, let the one before answer again, which a second rollback undoes.

    only: the version that is to be taken back. Raises Conflict where there is nothing to go back to, and where another
    one answers by now.
    """
    started = time.monotonic()
    async with registry.alone(model):
        before = (await registry.desired()).of(model)
        if before.champion is None and before.previous is None and before.trial is None:
            message = f"No adapter of {model} was ever promoted: there is nothing to go back to."
            raise Conflict(message)
        leaving = before.trial.version if before.trial else before.champion
        if only is not None and leaving != only:
            raise Conflict(f"{model}@{only} is not what a rollback would take back: that is {model}@{leaving or BARE}.")
        kept = None if await registry.tainted(model, before.champion) else before.champion
        after = Serving(model=model, champion=before.previous, previous=kept)
        if before.trial:
            after = Serving(model=model, champion=before.champion, previous=before.previous)
        line = Line("rollback", after.champion, leaving, forced=False, reason=reason)
        return await _switch(registry, before, after, line, started)


class Line(NamedTuple):
    """A line of the history: see app.registry.Change."""

    kind: Kind
    version: str | None
    before: str | None
    forced: bool
    reason: str | None
    share: float | None = None


def _check(adapter: Adapter, *, force: bool) -> None:
    if adapter.retired_at is not None:
        raise NotPromoted(adapter.name, f"it was retired on {adapter.retired_at:%Y-%m-%d}.")
    if adapter.verdict == "passed" or force:
        return
    if adapter.verdict == "blocked":
        raise NotPromoted(adapter.name, f"the gates blocked it: {'; '.join(adapter.reasons)}. --force overrides them.")
    raise NotPromoted(adapter.name, "it was never evaluated. Run the evaluation, or promote it with --force.")


async def _check_memory(registry: Registry, adapter: Adapter) -> None:
    """An adapter that learnt from what people had deleted answers nobody, and no force changes that."""
    if turns := await registry.tainted(adapter.model, adapter.version):
        reason = f"it learnt from {turns} turns that were deleted since. Train anew: they are left out."
        raise NotPromoted(adapter.name, reason)


async def _load(registry: Registry, adapter: Adapter) -> Serving:
    """Have every engine load it. Returns what was served until now. Raises NotPromoted where one cannot."""
    async with registry.change() as editing:
        before = await editing.of(adapter.model)
        await editing.stage(adapter.model, adapter.version)
    problem = await _staged(registry, adapter, editing.revision)
    if problem:
        async with registry.change() as editing:
            await editing.stage(adapter.model, None)
        raise NotPromoted(adapter.name, problem)
    return before


async def _staged(registry: Registry, adapter: Adapter, revision: int) -> str:
    """Wait until every engine that has the base loaded has the adapter, too. Returns why not; empty: all have it."""
    deadline = time.monotonic() + STAGE_S
    while True:
        engines = [member for member in await _members(registry, deadline) if member.part == "engine"]
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


async def _members(registry: Registry, deadline: float) -> Sequence[Member]:
    """Those that are alive. Raises Unavailable where PostgreSQL is still away at the deadline.

    A crash empties the table of members, which is not logged: once it is back, they get the time to say so again.
    """
    away = False
    while True:
        try:
            found = await registry.members()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            away = True
            await asyncio.sleep(AGAIN_S)
        else:
            if not away:
                return found
            away = False
            await asyncio.sleep(BACK_S)


async def _switch(registry: Registry, before: Serving, after: Serving, line: Line, started: float) -> Promoted:
    revision = await _serve(registry, after, line)
    deadline = time.monotonic() + SWITCH_S
    while True:
        members = await _members(registry, deadline)
        gateways = [member for member in members if member.part == "gateway"]
        if all(gateway.revision >= revision for gateway in gateways):
            break
        if time.monotonic() > deadline:
            late = sum(gateway.revision < revision for gateway in gateways)
            problem = f"{late} of {len(gateways)} gateways did not take it in within {SWITCH_S:.0f} s."
            back = Line("rollback", line.before, line.version, forced=False, reason=problem)
            await _serve(registry, before.model_copy(update={"staged": None}), back, instead_of=after)
            raise NotPromoted(f"{after.model}@{line.version or BARE}", problem)
        await asyncio.sleep(LOOK_S)
    return Promoted(
        model=after.model,
        champion=after.champion,
        previous=after.previous,
        trial=after.trial,
        revision=revision,
        engines=sum(member.part == "engine" for member in members),
        gateways=len(gateways),
        seconds=time.monotonic() - started,
    )


async def _serve(registry: Registry, serving: Serving, line: Line, *, instead_of: Serving | None = None) -> int:
    """Make it the desired state, and return its revision. instead_of: unless somebody else changed that meanwhile."""
    async with registry.change() as editing:
        if instead_of is None or await editing.of(serving.model) == instead_of:
            await editing.serve(serving)
            await editing.note(
                line.kind, serving.model, line.version, line.before,
                forced=line.forced, reason=line.reason, share=line.share,
            )  # fmt: skip
    return editing.revision
