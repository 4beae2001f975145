"""The runs of the learning loop: what was asked for, how far it is, what came of it. Kept in PostgreSQL.

    runs = Runs(pool)
    run = await runs.add("default", Order(), "command")
    run = await runs.claim()            # the oldest that is to do, and nobody works on; one at a time
    await runs.beat(run, {...})         # every BEAT_S, by the process that works on it
    await runs.finish(run, "succeeded", result={...})

A run is a row, and the queue is the rows' order. Whoever works on one says so every few seconds; when it is silent for
LIVE_S, somebody else goes on (train/run.py begins where the stages' folders say that it ended). Each beginning is an
attempt with a number, and only the latest one may write: a process that was cut off and comes back cannot do harm.

Every method raises Unavailable while PostgreSQL is away.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import asyncpg
from pydantic import Field, JsonValue

from app.errors import Conflict, NotFound
from app.ids import new_id
from app.messages import Strict
from app.nul import hide, hide_json, show, show_json
from app.postgres import reaching_postgres
from app.queries import queries

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Origin = Literal["command", "http", "openai", "schedule", "threshold"]
Level = Literal["info", "warn", "error"]
Kind = Literal["message", "metrics"]
StageName = Literal["export", "convert", "validate", "split", "tune", "evaluate", "gate", "publish"]

ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
BEAT_S = 2.0
LIVE_S = 30.0  # without a word for so long it is taken for dead
MOST_ATTEMPTS = 5  # by processes that died; then the run is what kills them
SQL = queries("runs.sql")

Facts = dict[str, JsonValue]
Parameters = dict[StageName, Facts]


class Order(Strict):
    """What a run is to do. Nothing named to learn from: the recorded conversations of its tenant.

    parameters: of the stages, as in params.yaml, complete: what is not there has its default, whatever that file says
    by the time the run begins. inputs: further files of a stage, `evaluate.trusted`, by their paths where it runs.
    """

    conversations: bool = True  # learn from those that were recorded
    files: tuple[str, ...] = ()  # and from uploaded files, by their ids
    paths: tuple[str, ...] = ()  # and from files and folders of the machine that trains
    dataset: str | None = None  # and from one of the Hugging Face Hub, org/name
    trusted: str | None = None  # an uploaded file: conversations whose answers are known to be right, to judge by
    inputs: dict[str, str] = Field(default_factory=dict)
    parameters: Parameters = Field(default_factory=dict)
    rate_factor: Annotated[float, Field(gt=0, le=1000)] = 1.0  # times the learning rate that it would have
    until: StageName = "publish"  # the last stage
    promote: bool = False  # let it answer, if its gates pass it
    model: str | None = None  # as the client called it
    metadata: Facts = Field(default_factory=dict)  # the client's own

    @property
    def sources(self) -> bool:
        return bool(self.conversations or self.files or self.paths or self.dataset)


class Progress(Strict):
    """How far a stage is. total None: nobody knows."""

    stage: str
    done: int = 0
    total: int | None = None
    text: str = ""


class Run(Strict):
    """One run. result: `name` and `verdict` of what was published, `promoted`, numbers, as far as there are."""

    id: str
    tenant: str
    origin: Origin
    order: Order
    state: State
    cancelling: bool
    attempt: int
    unstarted: int  # attempts for which no process could be started
    seen_at: datetime | None  # the last word of the process that works on it
    progress: Progress | None
    result: Facts
    error: str | None
    error_code: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def begun(self) -> int:
        """How many processes were started to work on it."""
        return self.attempt - self.unstarted


class StageRun(Strict):
    """A stage of a run. folder: beneath the home folder; counts, dropped, facts: of its manifest, once it has ended."""

    name: str
    folder: str
    key: str
    counts: Facts | None
    dropped: Facts | None
    facts: Facts | None
    reused: bool | None  # it had been done before, for the same inputs
    started_at: datetime
    finished_at: datetime | None


class Event(Strict):
    """Something that happened. id: ascends."""

    id: int
    at: datetime
    level: Level
    kind: Kind
    text: str
    data: Facts


class Runs:
    """The runs of one database. Closing the pool is its owner's."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def add(self, tenant: str, order: Order, origin: Origin) -> Run:
        """Queue a run."""
        row = await self._row("add", new_id("ftjob-"), hide(tenant), origin, _text(order))
        assert row is not None
        return _run(row)

    async def get(self, tenant: str | None, run_id: str) -> Run:
        """One run. tenant None: whoever's. Raises NotFound."""
        row = await self._row("get", hide(run_id), tenant and hide(tenant))
        if row is None:
            raise NotFound("run", run_id[:80])
        return _run(row)

    async def list(
        self,
        tenant: str | None,
        *,
        limit: int = 20,
        after: str | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
    ) -> tuple[Run, ...]:
        """The latest first. after: the last id of the page before. Raises NotFound for an `after` that is none."""
        if after is not None:
            await self.get(tenant, after)
        wanted = None if metadata is None else _json(metadata)
        return tuple(map(_run, await self._rows("list", tenant and hide(tenant), limit, after, wanted)))

    async def cancel(self, tenant: str, run_id: str) -> Run:
        """End a run: at once where it waits, within seconds where it is worked on. Raises NotFound, Conflict."""
        row = await self._row("cancel", hide(run_id), hide(tenant))
        if row is None:
            run = await self.get(tenant, run_id)
            raise Conflict(f"The run {run.id} has {run.state} already: there is nothing to cancel.")
        return _run(row)

    async def claim(self, live_s: float = LIVE_S) -> Run | None:
        """The right to work on the oldest run that has not ended. None: there is none, or somebody works on it.

        live_s: how long whoever works on it may have been silent.
        """
        row = await self._row("claim", live_s)
        return None if row is None else _run(row)

    async def running(self) -> Run | None:
        """What is worked on, by whomever."""
        row = await self._row("running")
        return None if row is None else _run(row)

    async def beat(self, run: Run, progress: Progress | None = None) -> Literal["go on", "cancel", "lost"]:
        """Say that the work goes on. `lost`: another attempt has begun, or somebody ended it."""
        told = None if progress is None else _text(progress)
        row = await self._row("beat", run.id, run.attempt, told)
        if row is None:
            return "lost"
        return "cancel" if row["cancelling"] else "go on"

    async def lose(self, run: Run) -> bool:
        """Say that the process which worked on it is gone, so that the next `claim` need not wait. False: it ended."""
        return await self._row("lose", run.id, run.attempt) is not None

    async def unstart(self, run: Run) -> None:
        """Queue it again, in its old place: no process could be started, which is not its fault."""
        await self._row("unstart", run.id, run.attempt)

    async def finish(
        self,
        run: Run,
        state: State,
        *,
        result: Mapping[str, JsonValue] | None = None,
        error: str | None = None,
        code: str | None = None,
    ) -> bool:
        """End it. code: of the error. False: another attempt has begun."""
        written = None if error is None else hide(error)
        return await self._row("finish", run.id, run.attempt, state, _json(result or {}), written, code) is not None

    async def lend(self, run: Run, layers: Mapping[str, int]) -> None:
        """Keep what a run has borrowed (app/lending.py); nothing: it has given all back."""
        await self._row("lend", run.id, _json(dict(layers)))

    async def lending(self) -> tuple[Run, ...]:
        """Runs that have ended and did not give back."""
        return tuple(map(_run, await self._rows("lending")))

    async def begin(self, run: Run, name: str, folder: str, key: str) -> None:
        """A stage begins."""
        await self._row("begin", run.id, name, hide(folder), key)

    async def end(
        self,
        run: Run,
        name: str,
        *,
        counts: Mapping[str, JsonValue],
        dropped: Mapping[str, JsonValue],
        facts: Mapping[str, JsonValue],
        reused: bool,
    ) -> None:
        """A stage has ended."""
        await self._row("end", run.id, name, *map(_json, (counts, dropped, facts)), reused)

    async def stages(self, run_id: str) -> tuple[StageRun, ...]:
        """In the order in which they began."""
        return tuple(map(_stage, await self._rows("stages", run_id)))

    async def note(
        self,
        run: Run,
        text: str,
        *,
        level: Level = "info",
        kind: Kind = "message",
        data: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """Keep an event."""
        await self._row("note", run.id, level, kind, hide(text), _json(data or {}))

    async def events(self, run_id: str, *, limit: int = 20, before: int | None = None) -> tuple[Event, ...]:
        """The latest first. before: the id of the last one of the page before."""
        return tuple(map(_event, await self._rows("events", run_id, limit, before)))

    async def events_since(self, run_id: str, after: int = 0, *, limit: int = 1000) -> tuple[Event, ...]:
        """The oldest first, behind one of them."""
        return tuple(map(_event, await self._rows("events_since", run_id, after, limit)))

    async def taught(self, tenants: Sequence[str]) -> int:
        """How many turns somebody rated or corrected since the last run was asked for."""
        row = await self._row("taught", [hide(tenant) for tenant in tenants])
        return 0 if row is None else int(row[0])

    async def latest(self, origins: Sequence[Origin]) -> datetime | None:
        """When the last run of some origins was asked for."""
        row = await self._row("latest", list(origins))
        return None if row is None else row[0]

    async def _row(self, name: str, *arguments: object) -> asyncpg.Record | None:
        with reaching_postgres():
            return await self._pool.fetchrow(SQL[name], *arguments)

    async def _rows(self, name: str, *arguments: object) -> Sequence[asyncpg.Record]:
        with reaching_postgres():
            rows: Sequence[asyncpg.Record] = await self._pool.fetch(SQL[name], *arguments)
        return rows


def _text(value: Strict) -> str:
    return hide_json(value.model_dump_json())


def _json(value: Mapping[str, JsonValue]) -> str:
    return hide_json(json.dumps(dict(value)))


def _read(text: str | None) -> Any:
    return None if text is None else json.loads(show_json(text))


def _run(row: asyncpg.Record) -> Run:
    plain = {name: row[name] for name in Run.model_fields if name not in {"order", "progress", "result", "error"}}
    return Run.model_validate({
        **plain,
        "tenant": show(row["tenant"]),
        "order": _read(row["job"]),
        "progress": _read(row["progress"]),
        "result": _read(row["result"]),
        "error": row["error"] and show(row["error"]),
    })  # fmt: skip


def _stage(row: asyncpg.Record) -> StageRun:
    read = {name: _read(row[name]) for name in ("counts", "dropped", "facts")}
    return StageRun.model_validate({name: row[name] for name in StageRun.model_fields} | read)


def _event(row: asyncpg.Record) -> Event:
    told = {"text": show(row["text"]), "data": _read(row["data"])}
    return Event.model_validate({name: row[name] for name in Event.model_fields} | told)
