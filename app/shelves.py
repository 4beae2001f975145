"""Shelves that uploaded files (app/uploads.py) are put on: what OpenAI calls vector stores.

A shelf is a collection of its tenant's documents, and a file on a shelf is one document of it, or shares it with a file
of the same content. PostgreSQL is the truth: it holds what is still to do (app/shelf_work.py), so that a crash loses
nothing and what was deleted is found by nobody from that moment on.

Every method takes the tenant, and raises NotFound for what the tenant does not have, Unavailable while PostgreSQL is
away.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import asyncpg

from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.messages import Strict
from app.nul import hide, hide_json, show, show_json
from app.postgres import reaching_postgres, transaction
from app.queries import queries
from app.uploads import Upload, Uploads

Attributes = dict[str, str | float | bool]
FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]
ShelfStatus = Literal["in_progress", "completed", "expired"]
ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

MOST_FILES = 10_000  # on one shelf, as OpenAI has it; a search names them all
SQL = queries("shelves.sql")


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


class Shelves:
    """The shelves of one database. Closing the pool is its owner's. most_files: of one."""

    def __init__(self, pool: asyncpg.Pool, *, most_files: int = MOST_FILES) -> None:
        self._pool, self._most_files, self._uploads = pool, most_files, Uploads(pool)

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
        known = await self._uploads.several(tenant, [put.upload_id for put in puts])
        shelf_id, now = new_id("vs_"), datetime.now(UTC)
        facts = (shelf_id, hide(tenant), hide(name), description and hide(description), _json(metadata))
        async with transaction(self._pool) as connection:
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
        async with transaction(self._pool) as connection:
            if await connection.fetchval(SQL["delete_shelf"], hide(tenant), hide(shelf_id)) is None:
                raise NotFound("vector store", shelf_id[:80])
            await connection.execute(SQL["clear_shelf"], hide(shelf_id))

    async def put(self, tenant: str, shelf_id: str, puts: Sequence[Put], *, together: bool = False) -> str | None:
        """Put files on a shelf, where they are a moment later. together: as a batch, whose id is returned.

        Raises InvalidRequest for a shelf that is expired or full.
        """
        shelf = await self.usable(tenant, shelf_id)
        known = await self._uploads.several(tenant, [put.upload_id for put in puts])
        if sum(shelf.counts) + len(puts) > self._most_files:
            has, most = sum(shelf.counts), self._most_files
            message = f"The vector store holds {has} files, {len(puts)} are to come, {most} may be."
            raise InvalidRequest(message, "file_ids")
        batch = new_id("vsfb_") if together else None
        async with transaction(self._pool) as connection:
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
        chunking=chunking_of(row),
        status=status,
        error=error,
        document_id=row["document_id"],
        bytes=row["bytes"],
        created_at=row["created_at"],
    )


def chunking_of(row: asyncpg.Record) -> Chunking | None:
    """How a file is cut; None as the settings say."""
    tokens: int | None = row["chunk_tokens"]
    return None if tokens is None else Chunking(tokens=tokens, overlap=row["overlap_tokens"])
