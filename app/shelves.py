"""Files that clients upload, and the shelves that they are put on: what OpenAI calls files and vector stores.

A shelf is a collection of its tenant's documents, and a file on a shelf is one document of it, or shares it with a file
of the same content. PostgreSQL is the truth: it holds the bytes of files, and what is still to do, so that a crash
loses nothing and what was deleted is found by nobody from that moment on. The work (reading, cutting, indexing, and
clearing away) is deployments/shelving.py's.

Every method takes the tenant, and raises NotFound for what the tenant does not have, Unavailable while PostgreSQL is
away.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import asyncpg

from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.messages import Strict
from app.nul import hide, hide_json, show, show_json
from app.postgres import reaching_postgres
from app.queries import queries

Purpose = Literal["assistants", "user_data", "fine-tune"]
Attributes = dict[str, str | float | bool]
FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]
ShelfStatus = Literal["in_progress", "completed", "expired"]
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

MOST_FILES = 10_000  # on one shelf, as OpenAI has it; a search names them all
LOCK = 7_266_883_109  # any number, ours alone
SQL = queries("shelves.sql")


class Upload(Strict):
    """A file that was uploaded. media_type: as its sender declared it."""

    id: str
    name: str
    media_type: str | None
    purpose: Purpose
    bytes: int
    created_at: datetime
    expires_at: datetime | None


class Counts(NamedTuple):
    """How many files are how far."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int


class Shelf(Strict):
    """A shelf, and how full it is."""

    id: str
    name: str
    description: str | None
    metadata: dict[str, str]
    created_at: datetime
    active_at: datetime
    expires_days: int | None
    expires_at: datetime | None
    counts: Counts
    bytes: int

    @property
    def status(self) -> ShelfStatus:
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            return "expired"
        return "in_progress" if self.counts.in_progress else "completed"


class Chunking(Strict):
    """How a file is cut, in tokens."""

    tokens: int
    overlap: int


class Shelved(Strict):
    """A file on a shelf. document_id: of what can be found of it; chunking: None for that of the settings."""

    shelf_id: str
    upload_id: str
    name: str
    attributes: Attributes
    chunking: Chunking | None
    status: FileStatus
    error: tuple[ErrorCode, str] | None
    document_id: str | None
    bytes: int
    created_at: datetime


class Batch(Strict):
    """Files that were put on a shelf together."""

    id: str
    shelf_id: str
    created_at: datetime
    cancelled: bool
    counts: Counts


class Put(Strict):
    """A file to put on a shelf."""

    upload_id: str
    attributes: Attributes
    chunking: Chunking | None


class Task(NamedTuple):
    """A file that is to come to its shelf, or to leave it. uploaded: its bytes are still there."""

    tenant: str
    shelf_id: str
    upload_id: str
    name: str
    media_type: str | None
    chunking: Chunking | None
    leaving: bool
    uploaded: bool
    document_id: str | None
    asked_at: datetime


class Shelves:
    """The files and shelves of one database. Closing the pool is its owner's. most_files: of one shelf."""

    def __init__(self, pool: asyncpg.Pool, *, most_files: int = MOST_FILES) -> None:
        self._pool, self._most_files = pool, most_files

    async def upload(
        self, tenant: str, name: str, media_type: str | None, purpose: Purpose, data: bytes, lives_s: int | None
    ) -> Upload:
        """Keep a file. lives_s: seconds until it is deleted, None for ever."""
        now = datetime.now(UTC)
        upload = Upload(
            id=new_id("file-"),
            name=name,
            media_type=media_type,
            purpose=purpose,
            bytes=len(data),
            created_at=now,
            expires_at=None if lives_s is None else now + timedelta(seconds=lives_s),
        )
        facts = (upload.id, hide(tenant), hide(name), media_type and hide(media_type), purpose, upload.bytes)
        async with self._transaction() as connection:
            await connection.execute(SQL["upload"], *facts, now, upload.expires_at)
            await connection.execute(SQL["upload_bytes"], upload.id, data)
        return upload

    async def uploads(self, tenant: str, purpose: str | None = None) -> tuple[Upload, ...]:
        """The oldest first."""
        with reaching_postgres():
            return tuple(map(_upload, await self._pool.fetch(SQL["uploads"], hide(tenant), purpose)))

    async def uploaded(self, tenant: str, upload_id: str) -> Upload:
        """One file."""
        return (await self._uploaded(tenant, [upload_id]))[upload_id]

    async def content(self, tenant: str, upload_id: str) -> tuple[Upload, bytes]:
        """One file with its bytes."""
        upload = await self.uploaded(tenant, upload_id)
        with reaching_postgres():
            data: bytes | None = await self._pool.fetchval(SQL["content"], upload_id)
        if data is None:  # deleted in this moment
            raise NotFound("file", upload_id)
        return upload, data

    async def delete_upload(self, tenant: str, upload_id: str) -> None:
        """Delete a file, and take it off all shelves."""
        async with self._transaction() as connection:
            await connection.execute(SQL["take_off"], hide(tenant), hide(upload_id))
            if await connection.fetchval(SQL["delete_upload"], hide(tenant), hide(upload_id)) is None:
                raise NotFound("file", upload_id[:80])

    async def make(
        self,
        tenant: str,
        *,
        name: str,
        description: str | None,
        metadata: Mapping[str, str],
        expires_days: int | None,
        puts: Sequence[Put],
    ) -> Shelf:
        """A new shelf, with some files on their way to it."""
        known = await self._uploaded(tenant, [put.upload_id for put in puts])
        shelf_id, now = new_id("vs_"), datetime.now(UTC)
        facts = (shelf_id, hide(tenant), hide(name), description and hide(description), _json(metadata))
        async with self._transaction() as connection:
            await connection.execute(SQL["make"], *facts, now, expires_days)
            await _shelve(connection, shelf_id, puts, known, None)
        return await self.shelf(tenant, shelf_id)

    async def shelves(self, tenant: str) -> tuple[Shelf, ...]:
        """The oldest first."""
        with reaching_postgres():
            return tuple(map(_shelf, await self._pool.fetch(SQL["shelves"], hide(tenant), None)))

    async def shelf(self, tenant: str, shelf_id: str) -> Shelf:
        """One shelf."""
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["shelves"], hide(tenant), hide(shelf_id))
        if row is None:
            raise NotFound("vector store", shelf_id[:80])
        return _shelf(row)

    async def modify(
        self,
        tenant: str,
        shelf_id: str,
        *,
        name: str | None,
        metadata: Mapping[str, str] | None,
        expires_days: int | None,
        expiry: bool,
    ) -> Shelf:
        """Change a shelf. None changes nothing, but for expires_days where `expiry` says that it was given."""
        facts = (hide(tenant), hide(shelf_id), name and hide(name), None if metadata is None else _json(metadata))
        with reaching_postgres():
            await self._pool.execute(SQL["modify"], *facts, expires_days, expiry)
        return await self.shelf(tenant, shelf_id)

    async def delete(self, tenant: str, shelf_id: str) -> None:
        """Delete a shelf. Its files stay files."""
        async with self._transaction() as connection:
            if await connection.fetchval(SQL["delete_shelf"], hide(tenant), hide(shelf_id)) is None:
                raise NotFound("vector store", shelf_id[:80])
            await connection.execute(SQL["clear_shelf"], hide(shelf_id))

    async def put(self, tenant: str, shelf_id: str, puts: Sequence[Put], *, together: bool = False) -> str | None:
        """Put files on a shelf, where they are a moment later. together: as a batch, whose id is returned.

        Raises InvalidRequest for a shelf that is expired or full.
        """
        shelf = await self.usable(tenant, shelf_id)
        known = await self._uploaded(tenant, [put.upload_id for put in puts])
        if sum(shelf.counts) + len(puts) > self._most_files:
            has, most = sum(shelf.counts), self._most_files
            message = f"The vector store holds {has} files, {len(puts)} are to come, {most} may be."
            raise InvalidRequest(message, "file_ids")
        batch = new_id("vsfb_") if together else None
        async with self._transaction() as connection:
            if batch:
                await connection.execute(SQL["batch"], batch, shelf_id, datetime.now(UTC))
            await _shelve(connection, shelf_id, puts, known, batch)
            await connection.execute(SQL["active"], shelf_id)
        return batch

    async def usable(self, tenant: str, shelf_id: str) -> Shelf:
        """A shelf that is not expired. Raises InvalidRequest for one that is."""
        shelf = await self.shelf(tenant, shelf_id)
        if shelf.status == "expired":
            message = f"The vector store '{shelf_id}' is expired, and what it held is deleted. Make another one."
            raise InvalidRequest(message, "vector_store_id")
        return shelf

    async def files(self, tenant: str, shelf_id: str, batch_id: str | None = None) -> tuple[Shelved, ...]:
        """The files of a shelf, or those of a batch, the oldest first."""
        await self.shelf(tenant, shelf_id)
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["shelved"], shelf_id, None, batch_id)
        return tuple(map(_shelved, rows))

    async def file(self, tenant: str, shelf_id: str, upload_id: str) -> Shelved:
        """One of them."""
        await self.shelf(tenant, shelf_id)
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["shelved"], shelf_id, hide(upload_id), None)
        if row is None:
            raise NotFound("file in the vector store", upload_id[:80])
        return _shelved(row)

    async def attribute(self, tenant: str, shelf_id: str, upload_id: str, attributes: Attributes) -> Shelved:
        """Say anew what is true of a file."""
        await self.shelf(tenant, shelf_id)
        with reaching_postgres():
            await self._pool.execute(SQL["attribute"], shelf_id, hide(upload_id), _json(attributes))
        return await self.file(tenant, shelf_id, upload_id)

    async def take(self, tenant: str, shelf_id: str, upload_id: str) -> None:
        """Take a file off a shelf. It stays a file."""
        await self.shelf(tenant, shelf_id)
        with reaching_postgres():
            if await self._pool.fetchval(SQL["leave"], shelf_id, hide(upload_id)) is None:
                raise NotFound("file in the vector store", upload_id[:80])

    async def batch(self, tenant: str, shelf_id: str, batch_id: str) -> Batch:
        """Files that were put on a shelf together."""
        files = await self.files(tenant, shelf_id, hide(batch_id))
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["batches"], shelf_id, hide(batch_id))
        if row is None:
            raise NotFound("file batch", batch_id[:80])
        states: list[str] = [file.status for file in files]
        counts = Counts(*(states.count(state) for state in Counts._fields))
        return Batch(**row, counts=counts)

    async def cancel(self, tenant: str, shelf_id: str, batch_id: str) -> Batch:
        """Leave undone what of a batch is not done yet."""
        await self.batch(tenant, shelf_id, batch_id)
        with reaching_postgres():
            await self._pool.execute(SQL["cancel"], batch_id)
        return await self.batch(tenant, shelf_id, batch_id)

    async def searched(self, tenant: str, shelf_id: str) -> dict[str, Shelved]:
        """What can be found on a shelf, by document; of files that share one, the newest. The shelf was used."""
        await self.usable(tenant, shelf_id)
        files = await self.files(tenant, shelf_id)
        with reaching_postgres():
            await self._pool.execute(SQL["active"], shelf_id)
        return {file.document_id: file for file in files if file.status == "completed" and file.document_id}

    @asynccontextmanager
    async def working(self) -> AsyncIterator["Work | None"]:
        """The right to do what is to do, on a connection of its own: if that is lost, so is the right."""
        with reaching_postgres():
            connection = await self._pool.acquire()
        try:
            with reaching_postgres():
                free = await connection.fetchval(SQL["try_lock"], LOCK)
            yield Work(connection, self) if free else None
        finally:
            with reaching_postgres():
                await self._pool.release(connection)  # which unlocks

    async def _uploaded(self, tenant: str, upload_ids: Sequence[str]) -> dict[str, Upload]:
        """Files by their ids. Raises NotFound for the first that is not there."""
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["uploads_by_id"], hide(tenant), [hide(id_) for id_ in upload_ids])
        found = {row["id"]: _upload(row) for row in rows}
        if missing := next((id_ for id_ in upload_ids if id_ not in found), None):
            raise NotFound("file", missing[:80])
        return found

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        with reaching_postgres():
            async with self._pool.acquire() as connection, connection.transaction():
                yield connection


class Work:
    """What is to do, for the one who works on it."""

    def __init__(self, connection: asyncpg.Connection, shelves: Shelves) -> None:
        self._connection, self._shelves = connection, shelves

    async def tasks(self, limit: int) -> tuple[Task, ...]:
        """Files that are to come or to leave."""
        with reaching_postgres():
            return tuple(map(_task, await self._connection.fetch(SQL["to_do"], limit)))

    async def data(self, task: Task) -> bytes:
        """The bytes of the file. Raises NotFound where it was deleted meanwhile."""
        return (await self._shelves.content(task.tenant, task.upload_id))[1]

    async def shared(self, task: Task, document_id: str) -> bool:
        """Whether another file of the shelf is this document."""
        with reaching_postgres():
            arguments = (task.shelf_id, document_id, task.upload_id)
            return bool(await self._connection.fetchval(SQL["sharers"], *arguments))

    async def disown(self, task: Task) -> None:
        """Note that its document is gone."""
        with reaching_postgres():
            await self._connection.execute(SQL["disown"], task.shelf_id, task.upload_id)

    async def came(self, task: Task, document_id: str, size: int) -> bool:
        """It is on its shelf. False: it was asked for anew, cancelled, or left meanwhile."""
        with reaching_postgres():
            arguments = (task.shelf_id, task.upload_id, task.asked_at, document_id, size)
            return await self._connection.fetchval(SQL["came"], *arguments) is not None

    async def failed(self, task: Task, code: ErrorCode, message: str) -> None:
        """It cannot be put there."""
        with reaching_postgres():
            arguments = (task.shelf_id, task.upload_id, task.asked_at, code, hide(message))
            await self._connection.execute(SQL["failed"], *arguments)

    async def left(self, task: Task) -> None:
        """Nothing is left of it on its shelf."""
        with reaching_postgres():
            await self._connection.execute(SQL["left"], task.shelf_id, task.upload_id)

    async def expire(self) -> None:
        """Let go what is expired."""
        with reaching_postgres():
            for upload in await self._connection.fetch(SQL["expired_uploads"]):
                with suppress(NotFound):
                    await self._shelves.delete_upload(show(upload["tenant"]), show(upload["id"]))
            for shelf in await self._connection.fetch(SQL["expired_shelves"]):
                await self._connection.execute(SQL["clear_shelf"], shelf["id"])

    async def empty(self) -> tuple[tuple[str, str], ...]:
        """Shelves that were deleted and are empty: tenant and id."""
        with reaching_postgres():
            return tuple((show(row["tenant"]), row["id"]) for row in await self._connection.fetch(SQL["empty"]))

    async def sweep(self, shelf_id: str) -> None:
        """Such a shelf is gone."""
        with reaching_postgres():
            await self._connection.execute(SQL["sweep"], shelf_id)


async def _shelve(
    connection: asyncpg.Connection, shelf_id: str, puts: Sequence[Put], known: Mapping[str, Upload], batch: str | None
) -> None:
    puts = list({put.upload_id: put for put in puts}.values())
    cuts = [put.chunking for put in puts]
    await connection.execute(
        SQL["shelve"],
        shelf_id,
        [put.upload_id for put in puts],
        batch,
        [hide(known[put.upload_id].name) for put in puts],
        [_json(put.attributes) for put in puts],
        [cut and cut.tokens for cut in cuts],
        [None if cut is None else cut.overlap for cut in cuts],
        datetime.now(UTC),
    )


def _json(value: Mapping[str, object]) -> str:
    return hide_json(json.dumps(value))


def _upload(row: asyncpg.Record) -> Upload:
    fields = {name: row[name] for name in Upload.model_fields}
    media_type = row["media_type"] and show(row["media_type"])
    return Upload.model_validate(fields | {"name": show(row["name"]), "media_type": media_type})


def _shelf(row: asyncpg.Record) -> Shelf:
    fields = {name: row[name] for name in Shelf.model_fields if name != "counts"}
    shown = {
        "name": show(row["name"]),
        "description": row["description"] and show(row["description"]),
        "metadata": json.loads(show_json(row["metadata"])),
        "counts": Counts(*(row[state] for state in Counts._fields)),
    }
    return Shelf.model_validate(fields | shown)


def _shelved(row: asyncpg.Record) -> Shelved:
    status, error = row["status"], row["error_code"] and (row["error_code"], show(row["error"]))
    if status == "completed" and row["document_id"] is None:
        status, error = "failed", ("server_error", "Its document was deleted; put the file on the vector store anew.")
    return Shelved(
        shelf_id=row["shelf_id"],
        upload_id=row["upload_id"],
        name=show(row["name"]),
        attributes=json.loads(show_json(row["attributes"])),
        chunking=_chunking(row),
        status=status,
        error=error,
        document_id=row["document_id"],
        bytes=row["bytes"],
        created_at=row["created_at"],
    )


def _task(row: asyncpg.Record) -> Task:
    return Task(
        tenant=show(row["tenant"]),
        shelf_id=row["shelf_id"],
        upload_id=row["upload_id"],
        name=show(row["name"]),
        media_type=row["media_type"] and show(row["media_type"]),
        chunking=_chunking(row),
        leaving=row["status"] == "leaving",
        uploaded=row["uploaded"],
        document_id=row["document_id"],
        asked_at=row["asked_at"],
    )


def _chunking(row: asyncpg.Record) -> Chunking | None:
    tokens: int | None = row["chunk_tokens"]
    return None if tokens is None else Chunking(tokens=tokens, overlap=row["overlap_tokens"])
