"""The registry: adapters by name and version, and the desired state of serving, in PostgreSQL.

    registry = Registry(pool, home)
    await registry.add("demo", "v2", home / "adapters/demo/v2.gguf", verdict="passed")
    desired = await registry.desired()

Every change raises one revision and is announced on the channel `mindfu_serving`. app/promotion.py decides who answers;
app/following.py keeps a process at the latest revision. Methods raise Unavailable while PostgreSQL is away.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
from pydantic import Field, JsonValue, TypeAdapter

from app.control import Control
from app.desired import BARE, Adapter, Desired, Serving, TrialKind, Verdict
from app.errors import Conflict, InvalidRequest, NotFound
from app.messages import Strict
from app.postgres import AWAY, reaching_postgres, transaction
from app.queries import queries

SQL = queries("registry.sql")
CHANNEL = "mindfu_serving"
LIVE_S = 10.0  # a member that was silent for so long has ended
READ_S = 10.0  # that a statement may take
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Kind = TrialKind | Literal["promote", "rollback"]
Part = Literal["gateway", "engine"]

SERVINGS, ADAPTERS = TypeAdapter(tuple[Serving, ...]), TypeAdapter(tuple[Adapter, ...])
DETAILS: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Holding(Strict):
    """What an engine holds of one model that it has loaded. failed: versions that do not load, and why.

    layers: on GPUs; refused: why it is not as many as are wanted.
    """

    loaded: tuple[str, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)
    layers: int = 0
    refused: str = ""


Holdings = dict[str, Holding]  # by model
HOLDINGS = TypeAdapter(Holdings)


class Member(Strict):
    """A process that serves. revision: that it goes by."""

    part: Part
    revision: int
    models: Holdings


class Change(Strict):
    """One line of the history. version answers since then, before answered until then; None is the bare base.

    canary, shadow: version is on trial since then, with that share. A rollback that ends a trial goes from it (before)
    to the champion (version), which answered all the time.
    """

    revision: int
    at: datetime
    kind: Kind
    model: str
    version: str | None
    before: str | None
    forced: bool
    reason: str | None
    share: float | None = None


class Training(NamedTuple):
    """What an adapter was trained on. data: a hash of it; conversations: how many it came from."""

    data: str
    conversations: int


@dataclass
class Editing:
    """A change of the desired state under way: one transaction, whose revision is known."""

    connection: asyncpg.Connection
    revision: int
    serving: dict[str, Serving] = field(default_factory=dict)

    async def of(self, model: str) -> Serving:
        """What is served of a model at this moment."""
        found = await self.connection.fetchval(SQL["serving"], model)
        return Serving(model=model) if found is None else Serving.model_validate_json(found)

    async def stage(self, model: str, version: str | None) -> None:
        """Have every engine load a version; None: none."""
        await self.connection.execute(SQL["stage"], model, version)

    async def serve(self, serving: Serving) -> None:
        """Let a version answer for the model's name, keep another one loaded, and have one on trial or none."""
        await self.connection.execute(SQL["serve"], serving.model, serving.champion, serving.previous)
        await self.connection.execute(SQL["end_trial"], serving.model)
        if trial := serving.trial:
            values = trial.version, trial.kind, trial.share, trial.since
            await self.connection.execute(SQL["try_out"], serving.model, *values)

    async def note(
        self,
        kind: Kind,
        model: str,
        version: str | None,
        before: str | None,
        *,
        forced: bool = False,
        reason: str | None = None,
        share: float | None = None,
    ) -> None:
        """Write a line of the history."""
        await self.connection.execute(SQL["note"], self.revision, kind, model, version, before, forced, reason, share)


class Registry:
    """Adapters and the desired state of one database. home: beneath which relative paths of adapters lie."""

    def __init__(self, pool: asyncpg.Pool, home: Path) -> None:
        self.pool, self.home = pool, home

    async def desired(self, connection: asyncpg.Connection | None = None) -> Desired:
        """The desired state at this moment."""
        with reaching_postgres():
            row = await (connection or self.pool).fetchrow(SQL["desired"], timeout=READ_S)
        return Desired(
            revision=row["revision"],
            servings=SERVINGS.validate_json(row["servings"]),
            adapters=ADAPTERS.validate_json(row["adapters"]),
            control=Control.model_validate_json(row["control"]),
        )

    async def add(
        self,
        model: str,
        version: str,
        file: Path,
        *,
        verdict: Verdict | None = None,
        reasons: Sequence[str] = (),
        details: Mapping[str, JsonValue] | None = None,
    ) -> Adapter:
        """Make an adapter known, so that it can be asked for. file: a GGUF LoRA that every engine reaches by this path.

        The same content under the same name again changes nothing. Raises InvalidRequest for a name or a file that
        cannot be, Conflict where the name was ever used for another content.
        """
        check_version(version)
        path, (sha256, size) = stored_path(file, self.home), await asyncio.to_thread(digest, file)
        with reaching_postgres():
            async with self.change() as editing:
                added = await editing.connection.fetchval(
                    SQL["add"],
                    *(model, version, path, sha256, size, verdict, list(reasons)),
                    DETAILS.dump_json(dict(details or {})).decode(),
                )
        found = await self.adapter(model, version)
        if added is None and found.sha256 != sha256:
            message = (
                f"{model}@{version} exists since {found.created_at:%Y-%m-%d %H:%M} with another content. "
                "A version is never used twice: choose another name."
            )
            raise Conflict(message)
        return found

    async def adapter(self, model: str, version: str) -> Adapter:
        """One adapter, also one that was retired. Raises NotFound."""
        with reaching_postgres():
            row = await self.pool.fetchval(SQL["adapter"], model, version)
        if row is None:
            raise NotFound("adapter", f"{model}@{version}")
        return Adapter.model_validate_json(row)

    async def trainings(self) -> dict[str, Training]:
        """What adapters were trained on, by their names; those that came from elsewhere are missing."""
        with reaching_postgres():
            rows = await self.pool.fetch(SQL["trainings"])
        return {f"{row['model']}@{row['version']}": Training(row["data"], row["conversations"]) for row in rows}

    async def judge(self, model: str, version: str, verdict: Verdict, reasons: Sequence[str] = ()) -> None:
        """Keep what the gates said of an adapter. Raises NotFound."""
        async with self.change() as editing:
            if await editing.connection.fetchval(SQL["judge"], model, version, verdict, list(reasons)) is None:
                raise NotFound("adapter", f"{model}@{version}")

    async def tainted(self, model: str, version: str | None) -> int:
        """From how many turns that are gone by now an adapter learnt. None, the bare base, from none."""
        with reaching_postgres():
            return int(await self.pool.fetchval(SQL["tainted"], model, version) or 0)

    async def retire(self, model: str, version: str) -> None:
        """Serve an adapter no longer; its name stays taken. Raises NotFound, Conflict where it is kept loaded."""
        async with self.change() as editing:
            if version in (await editing.of(model)).resident:
                message = (
                    f"{model}@{version} is served, on trial, or kept for a rollback. Promote another version first."
                )
                raise Conflict(message)
            if await editing.connection.fetchval(SQL["retire"], model, version) is None:
                raise NotFound("adapter", f"{model}@{version}")

    async def changes(self, model: str, limit: int = 100) -> tuple[Change, ...]:
        """Who answered when, the latest first."""
        with reaching_postgres():
            rows = await self.pool.fetch(SQL["changes"], model, limit)
        return tuple(Change(**row) for row in rows)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Editing]:
        """Change the desired state: what the block does becomes one revision, or nothing of it where it raises."""
        async with transaction(self.pool) as connection:
            editing = Editing(connection, await connection.fetchval(SQL["change"]))
            yield editing
            await connection.execute(SQL["notify"], str(editing.revision))

    async def report(self, id_: UUID, part: Part, revision: int, models: Holdings) -> None:
        """Say what a member holds, and that it is alive."""
        with reaching_postgres():
            await self.pool.execute(
                SQL["report"], id_, part, revision, HOLDINGS.dump_json(models).decode(), timeout=READ_S
            )

    async def leave(self, id_: UUID) -> None:
        """Say that a member ends."""
        with reaching_postgres():
            await self.pool.execute(SQL["leave"], id_, timeout=READ_S)

    async def members(self) -> tuple[Member, ...]:
        """Those that are alive."""
        with reaching_postgres():
            rows = await self.pool.fetch(SQL["members"], LIVE_S)
        return tuple(
            Member(part=row["part"], revision=row["revision"], models=HOLDINGS.validate_json(row["models"]))
            for row in rows
        )

    @asynccontextmanager
    async def alone(self, model: str) -> AsyncIterator[None]:
        """Be the only one who promotes a model. Raises Conflict where somebody does already."""
        with reaching_postgres():
            async with self.pool.acquire() as connection:
                if not await connection.fetchval(SQL["try_lock"], model):
                    message = f"A promotion or rollback of {model} is under way. Try again when it is done."
                    raise Conflict(message)
                try:
                    yield
                finally:
                    with suppress(*AWAY):  # the lock ends with its connection
                        await connection.execute(SQL["unlock"], model)


def split_name(name: str) -> tuple[str, str]:
    """Model and version of `model@version`. Raises InvalidRequest."""
    model, at, version = name.rpartition("@")
    if not at or not model:
        message = f"'{name}' names no adapter. Write it as MODEL@VERSION."
        raise InvalidRequest(message, "version")
    check_version(version)
    return model, version


def check_version(version: str) -> None:
    """Raises InvalidRequest for what cannot name an adapter."""
    if not VERSION.fullmatch(version) or version == BARE:
        message = (
            f"'{version}' cannot name an adapter: letters, digits, '.', '_' and '-' can, up to 63, the first a letter "
            f"or digit, and not '{BARE}', which names the bare base."
        )
        raise InvalidRequest(message, "version")


def stored_path(file: Path, home: Path) -> str:
    """How a file is kept: beneath the home folder by its relative path, so that homes can move."""
    absolute = file.absolute()
    return str(absolute.relative_to(home)) if absolute.is_relative_to(home) else str(absolute)


def digest(file: Path) -> tuple[str, int]:
    """SHA-256, hexadecimal, and size in bytes. Raises InvalidRequest where it is no GGUF that can be read."""
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                message = f"{file} is not a GGUF file. Give an adapter in llama.cpp's format."
                raise InvalidRequest(message, "path")
            opened.seek(0)
            return hashlib.file_digest(opened, "sha256").hexdigest(), file.stat().st_size
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror or error}."
        raise InvalidRequest(message, "path") from error
