"""Change what operators set while the server runs (app/control.py), everywhere, or not at all.

Both functions return when every gateway that is alive goes by it, and set it back where one does not.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable

import asyncpg

from app.control import Control
from app.errors import Conflict
from app.queries import queries
from app.registry import Member, Registry

SQL = queries("control.sql")
FOLLOW_S = 15.0  # that gateways may take: longer than one counts as alive without a word
RELOAD_S = 600.0  # that engines may take: answers that run end first
LOOK_S = 0.02

Problem = Callable[[Iterable[Member], int], str | None]  # of the members, at a revision; "": none; None: not known yet


async def steer(registry: Registry, change: Callable[[Control], Control]) -> tuple[Control, Control]:
    """What was set before, and what is set now. Raises Conflict where a gateway does not follow."""
    before, after, revision = await _set(registry, change)
    await _followed(registry, (before, after), revision, _gateways, FOLLOW_S)
    return before, after


async def place(registry: Registry, model: str, layers: int) -> None:
    """Have every engine load a model with so many layers on GPUs. Raises Conflict where one cannot, and why."""

    def changed(control: Control) -> Control:
        return control.model_copy(update={"layers": control.layers | {model: layers}})

    def engines(members: Iterable[Member], revision: int) -> str | None:
        known = [member for member in members if member.part == "engine"]
        held = [engine.models.get(model) if engine.revision >= revision else None for engine in known]
        refused = next((one.refused for one in held if one and one.refused), "")
        waiting = any(engine.revision < revision for engine in known) or any(
            one and one.layers != layers for one in held
        )
        return refused or (None if waiting else "")

    before, after, revision = await _set(registry, changed)
    await _followed(registry, (before, after), revision, engines, RELOAD_S)
    await _followed(registry, (before, after), revision, _gateways, FOLLOW_S)


async def control_of(connection: asyncpg.Connection) -> Control:
    """What is set at this moment."""
    return Control.model_validate_json(await connection.fetchval(SQL["control"]))


async def _set(registry: Registry, change: Callable[[Control], Control]) -> tuple[Control, Control, int]:
    async with registry.change() as editing:
        before = await control_of(editing.connection)
        after = change(before)
        layers = json.dumps(after.layers)
        await editing.connection.execute(SQL["set"], after.model, after.system_prompt, after.tools, layers)
    return before, after, editing.revision


async def _followed(
    registry: Registry, change: tuple[Control, Control], revision: int, problem: Problem, limit_s: float
) -> None:
    """Wait until there is no problem. Sets it back and raises Conflict where there is one."""
    deadline = time.monotonic() + limit_s
    while (found := problem(await registry.members(), revision)) is None:
        if time.monotonic() > deadline:
            found = f"not every replica took it in within {limit_s:.0f} s."
            break
        await asyncio.sleep(LOOK_S)
    if found:
        before, after = change
        await _set(registry, lambda now: before if now == after else now)  # unless somebody else changed it meanwhile
        raise Conflict(f"Nothing was changed: {found}")


def _gateways(members: Iterable[Member], revision: int) -> str | None:
    late = any(member.part == "gateway" and member.revision < revision for member in members)
    return None if late else ""
