"""The documents table: what was taken in, and what is on its way in or out.

    ingesting ──> ready ──> deleting ──> (no row)
        └──────────────────────┘

The row is written before the file and the vectors, and removed after them: whatever exists has a row that tells. Who
changes a document holds the lock of its content, an advisory lock of PostgreSQL: it goes with the connection, so that
the lock of a process that died is free, and a row in passing whose lock is free is one that nobody works on.
Needs connections that are ours for their life: PgBouncer must pool sessions, not transactions.
"""

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import asyncpg

from app.errors import InvalidRequest, NotFound, Unavailable
from app.messages import Document, Metadata
from app.postgres import reaching_postgres
from app.queries import queries

State = Literal["ingesting", "ready", "deleting"]

ID = re.compile(r"doc_[0-9a-f]{28}")
METADATA_BYTES = 16_000
HOLDS = 4  # at a time, each with one of the pool's eight connections
POLL_S = 0.2  # how often somebody who waits looks; without a connection, so that the waiting keep nobody waiting
SQL = queries("documents.sql")


def check_metadata(metadata: Metadata) -> None:
    """Raise InvalidRequest unless it is a flat JSON object of at most 16 kB that PostgreSQL can keep."""
    for key, value in metadata.items():
        if not isinstance(value, str | int | float | bool | None):
            raise InvalidRequest(f"metadata['{key[:80]}'] must be a string, a number, a boolean or null.", "metadata")
        if "\0" in key or (isinstance(value, str) and "\0" in value):
            raise InvalidRequest("metadata must not hold the character U+0000.", "metadata")
    try:
        size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:  # not a number, infinite, a lone surrogate, a number of thousands of digits
        raise InvalidRequest(f"metadata is no valid JSON: {error}.", "metadata") from error
    if size > METADATA_BYTES:
        raise InvalidRequest(f"metadata has {size} bytes as JSON, the limit is {METADATA_BYTES}.", "metadata")


class Row(NamedTuple):
    """A document and how far it is."""

    document: Document
    state: State


class Documents:
    """The table, through a pool of connections (see app/postgres.py), which is closed with it.

    Every method may raise Unavailable.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._holds = asyncio.Semaphore(HOLDS)

    async def close(self) -> None:
        """Return the connections and close the pool."""
        await self._pool.close()

    async def get(self, tenant: str, document_id: str) -> Row:
        """A document in any state. Raises NotFound."""
        if ID.fullmatch(document_id):
            with reaching_postgres():
                record = await self._pool.fetchrow(SQL["document"], tenant, document_id)
            if record is not None:
                return _row(record)
        raise NotFound("document", document_id[:80])

    async def of_content(self, tenant: str, collection: str, sha256: str) -> Document | None:
        """The document with this content, if it is ready."""
        with reaching_postgres():
            record = await self._pool.fetchrow(SQL["of_content"], tenant, collection, bytes.fromhex(sha256))
        return _row(record).document if record is not None and record["state"] == "ready" else None

    async def newest(
        self, tenant: str, collection: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> tuple[Document, ...]:
        """Documents that are ready, newest first. after: the id of the last one seen; it may be gone by now."""
        if after is not None and not ID.fullmatch(after):
            raise InvalidRequest(f"'{after[:80]}' is no document id.", "after")
        with reaching_postgres():
            records = await self._pool.fetch(SQL["newest"], tenant, collection, after, limit)
        return tuple(_row(record).document for record in records)

    async def unfinished(self) -> tuple[Row, ...]:
        """Documents of all tenants that are not ready, the oldest first."""
        with reaching_postgres():
            return tuple(map(_row, await self._pool.fetch(SQL["unfinished"])))

    @asynccontextmanager
    async def hold(self, document: Document) -> AsyncIterator["Held"]:
        """The right to change the document with this content; waits for whoever has it."""
        while True:
            async with self.hold_idle(document) as held:
                if held is not None:
                    yield held
                    return
            await asyncio.sleep(POLL_S)

    @asynccontextmanager
    async def hold_idle(self, document: Document) -> AsyncIterator["Held | None"]:
        """The same right, or None when somebody has it."""
        key = (document.tenant, document.collection, document.sha256)
        async with self._holds, self._connection() as connection:
            with reaching_postgres():
                free = await connection.fetchval(SQL["try_lock"], _lock_number(*key))
            yield Held(connection, *key) if free else None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """One connection. The pool unlocks what it holds when it takes it back."""
        with reaching_postgres():
            connection = await self._pool.acquire()
        try:
            yield connection
        finally:
            with contextlib.suppress(Unavailable), reaching_postgres():  # lost, and the lock with it
                await self._pool.release(connection)


class Held:
    """The document with one content, while nobody else may change it. All on one connection: if that is lost, so is the
    right, and every method raises Unavailable.
    """

    def __init__(self, connection: asyncpg.Connection, tenant: str, collection: str, sha256: str) -> None:
        self._connection = connection
        self._key = (tenant, collection, bytes.fromhex(sha256))

    async def row(self) -> Row | None:
        """What there is of it."""
        with reaching_postgres():
            record = await self._connection.fetchrow(SQL["of_content"], *self._key)
        return None if record is None else _row(record)

    async def begin(self, document: Document) -> Document:
        """Note that it is being taken in. Returns it with the id that it has if an earlier attempt died."""
        assert (document.tenant, document.collection, bytes.fromhex(document.sha256)) == self._key
        values = (document.size, document.name, document.title, document.media_type, json.dumps(document.metadata))
        with reaching_postgres():
            record = await self._connection.fetchrow(
                SQL["begin"], document.id, *self._key, *values, document.chunks, document.created_at
            )
        assert record is not None, "begin() with a row that is not ingesting: look at row() first"
        return _row(record).document

    async def move(self, document: Document, state: State) -> None:
        """Into another state. Raises Unavailable when the row is gone, which takes a hand in the database."""
        with reaching_postgres():
            if await self._connection.fetchval(SQL["move"], document.id, state) is None:
                raise Unavailable("document store", f"the row of {document.id} is gone")

    async def remove(self, document: Document) -> None:
        """The last step of a deletion."""
        with reaching_postgres():
            await self._connection.execute(SQL["remove"], document.id)


def _lock_number(tenant: str, collection: str, sha256: str) -> int:
    digest = hashlib.sha256(json.dumps([tenant, collection, sha256]).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _row(record: asyncpg.Record) -> Row:
    values = {**record, "sha256": record["sha256"].hex(), "metadata": json.loads(record["metadata"])}
    state: State = values.pop("state")
    return Row(Document(**values), state)
