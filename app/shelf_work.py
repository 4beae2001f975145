"""What is to do so that files come to their shelves (app/shelves.py), or leave them, for the one who works on it.

    async with working(pool) as work:       # None: somebody else works
        for task in await work.tasks(32): ...

What is to do stands in PostgreSQL, so that a crash loses nothing; the work itself (reading, cutting, indexing, clearing
away) is deployments/shelving.py's.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import NamedTuple

import asyncpg

from app.errors import NotFound
from app.nul import hide, show
from app.postgres import reaching_postgres
from app.queries import queries
from app.shelves import Chunking, ErrorCode, chunking_of
from app.uploads import Uploads

LOCK = 7_266_883_109  # any number, ours alone
SQL = queries("shelf_work.sql")


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


class Work:
    """What is to do, for the one who works on it."""

    def __init__(self, connection: asyncpg.Connection, uploads: Uploads) -> None:
        self._connection, self._uploads = connection, uploads

    async def tasks(self, limit: int) -> tuple[Task, ...]:
        """Files that are to come or to leave."""
        with reaching_postgres():
            return tuple(map(_task, await self._connection.fetch(SQL["to_do"], limit)))

    async def data(self, task: Task) -> bytes:
        """The bytes of the file. Raises NotFound where it was deleted meanwhile."""
        return (await self._uploads.content(task.tenant, task.upload_id))[1]

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
                    await self._uploads.delete(show(upload["tenant"]), show(upload["id"]))
            await self._connection.execute(SQL["expire_shelves"])

    async def empty(self) -> tuple[tuple[str, str], ...]:
        """Shelves that were deleted and are empty: tenant and id."""
        with reaching_postgres():
            return tuple((show(row["tenant"]), row["id"]) for row in await self._connection.fetch(SQL["empty"]))

    async def sweep(self, shelf_id: str) -> None:
        """Such a shelf is gone."""
        with reaching_postgres():
            await self._connection.execute(SQL["sweep"], shelf_id)


@asynccontextmanager
async def working(pool: asyncpg.Pool) -> AsyncIterator[Work | None]:
    """The right to do what is to do, on a connection of its own: if that is lost, so is the right."""
    with reaching_postgres():
        connection = await pool.acquire()
    try:
        with reaching_postgres():
            free = await connection.fetchval(SQL["try_lock"], LOCK)
        yield Work(connection, Uploads(pool)) if free else None
    finally:
        with reaching_postgres():
            await pool.release(connection)  # which unlocks


def _task(row: asyncpg.Record) -> Task:
    return Task(
        tenant=show(row["tenant"]),
        shelf_id=row["shelf_id"],
        upload_id=row["upload_id"],
        name=show(row["name"]),
        media_type=row["media_type"] and show(row["media_type"]),
        chunking=chunking_of(row),
        leaving=row["status"] == "leaving",
        uploaded=row["uploaded"],
        document_id=row["document_id"],
        asked_at=row["asked_at"],
    )
