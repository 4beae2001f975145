"""Runs the calls that a model makes while one request is answered, and remembers what they told.

Calls that only look run side by side, and the same one is made once; one that changes something runs alone, in its
turn, and what was remembered before it is forgotten.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal

from pydantic import JsonValue

from app.arguments import value_of
from app.messages import Message, Strict, ToolCall
from app.tools.context import Json
from app.tools.outcome import Outcome, refused

MOST_CALLS = 16  # of one turn of the model
MOST_SHOWN = 80  # characters of an argument in a line that people read

Make = Callable[[str, str], Awaitable[Outcome]]  # by the tool's name and its arguments; raises nothing


class ToolRun(Strict):
    """A call that was run. result: JSON text, as the model was told. round: of the tool loop, from 1.

    cached: the same call had been made already while this request was answered.
    """

    id: str
    name: str
    arguments: str
    status: Literal["success", "error"]
    result: str
    round: int
    duration_s: float
    cached: bool = False

    def line(self) -> str:
        """Like `lookup_hostname(example.org)`."""
        try:
            given = value_of(self.arguments or "{}")
        except ValueError:
            return f"{self.name}(?)"
        values = given.values() if isinstance(given, dict) else [given]
        shown = (value if isinstance(value, str) else json.dumps(value) for value in values)
        return f"{self.name}({', '.join(_cut(text) for text in shown)})"

    def kept(self) -> Json:
        """As it is kept with a turn, whose steps hold the result."""
        return self.model_dump(mode="json", exclude={"result"})


def steps(extras: Mapping[str, JsonValue]) -> tuple[Message, ...]:
    """What the model saw on the way to an answer, of those that were kept with a turn."""
    kept = extras.get("steps")
    return tuple(Message.model_validate(step) for step in kept) if isinstance(kept, list) else ()


def used(extras: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """A line for each of the calls that were kept with a turn, see `ToolRun.kept`."""
    runs = extras.get("tool_runs")
    kept = [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []
    return tuple(ToolRun.model_validate({"result": ""} | run).line() for run in kept)


class Runner:
    """Runs the calls of one answer. reads: the tools that may be called, and which of them change nothing.

    max_calls: of the whole answer; None: as many as the rounds allow.
    """

    def __init__(self, reads: Mapping[str, bool], make: Make, *, max_calls: int | None = None) -> None:
        self.names = frozenset(reads)
        self._reads, self._make, self._left = reads, make, max_calls
        self._known: dict[tuple[str, str], Outcome] = {}

    def among(self, names: Collection[str]) -> "Runner":
        """One for those of its tools that have these names, which remembers nothing yet."""
        reads = {name: reads for name, reads in self._reads.items() if name in names}
        return Runner(reads, self._make, max_calls=self._left)

    async def run(self, calls: Sequence[ToolCall], round_: int) -> AsyncGenerator[ToolRun]:
        """The runs of the calls, in their order, each group as soon as it is done."""
        allowed = MOST_CALLS if self._left is None else min(MOST_CALLS, self._left)
        self._left = None if self._left is None else self._left - len(calls[:allowed])
        for alone, group in self._groups(calls[:allowed]):
            if alone:
                self._known.clear()
            for run in await self._together(group, round_):
                yield run
            if alone:
                self._known.clear()
        for call in calls[allowed:]:
            told = f"Only {allowed} more calls are run, and this was one of {len(calls)}: it was left out."
            yield _run(call, round_, refused(told))

    def _groups(self, calls: Sequence[ToolCall]) -> Iterator[tuple[bool, list[ToolCall]]]:
        """Calls that run together, and whether it is one that changes something."""
        for looks, group in groupby(calls, key=lambda call: self._reads.get(call.name, True)):
            if looks:
                yield False, list(group)
            else:
                yield from ((True, [call]) for call in group)

    async def _together(self, calls: Sequence[ToolCall], round_: int) -> list[ToolRun]:
        first = {_key(call): call for call in reversed(calls)}
        new = {key: call for key, call in first.items() if key not in self._known}
        made = await asyncio.gather(*(self._made(call, round_) for call in new.values()))
        runs = dict(zip(new, made, strict=True))
        self._known |= {
            key: Outcome(succeeded=True, text=run.result) for key, run in runs.items() if run.status == "success"
        }
        return [self._told(call, runs.get(_key(call)), round_) for call in calls]

    def _told(self, call: ToolCall, run: ToolRun | None, round_: int) -> ToolRun:
        if run is None:
            return _run(call, round_, self._known[_key(call)], cached=True)
        if run.id == call.id:
            return run
        return run.model_copy(update={"id": call.id, "arguments": call.arguments, "duration_s": 0.0, "cached": True})

    async def _made(self, call: ToolCall, round_: int) -> ToolRun:
        if call.name not in self.names:
            told = f"There is no tool '{call.name}'. There are: {', '.join(sorted(self.names))}."
            return _run(call, round_, refused(told))
        started = time.perf_counter()
        came_to = await self._make(call.name, call.arguments)
        return _run(call, round_, came_to, time.perf_counter() - started)


def _run(call: ToolCall, round_: int, came_to: Outcome, duration_s: float = 0.0, *, cached: bool = False) -> ToolRun:
    return ToolRun(
        id=call.id,
        name=call.name,
        arguments=call.arguments,
        status="success" if came_to.succeeded else "error",
        result=came_to.text,
        round=round_,
        duration_s=duration_s,
        cached=cached,
    )


def _key(call: ToolCall) -> tuple[str, str]:
    """The same for the same arguments, however they are written."""
    try:
        return call.name, json.dumps(value_of(call.arguments or "{}"), sort_keys=True)
    except ValueError:
        return call.name, call.arguments


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"
