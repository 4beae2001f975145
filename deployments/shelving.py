"""The work of vector stores, in the background of the librarian: puts files on shelves and takes them off.

Of all processes with one database one works at a time. What is to do stands in PostgreSQL, so a crash or a restart
loses nothing; every step may be done twice.
"""

import asyncio
import logging
import time
from typing import Protocol

import asyncpg

from app.errors import MindFuError, NotFound, Unavailable, UnsupportedMedia
from app.messages import Added, Document, Metadata
from app.shelf_work import Task, Work, working
from app.shelves import ErrorCode

BATCH = 32  # files of one look at the queue
TOGETHER = 4  # that are on their way at a time; the reader has a bound of its own
REST_S = 0.5  # between two looks when there is nothing to do
RETRY_S = 5.0  # while something is away, or somebody else works
EXPIRY_S = 30.0  # between two looks at what is expired
CHARS_PER_TOKEN = 4  # a token of OpenAI's strategies, in characters: what it is of English text

logger = logging.getLogger(__name__)


class Takes(Protocol):
    """What it needs of the librarian."""

    async def add_file(
        self,
        tenant: str,
        collection: str,
        name: str,
        media_type: str | None,
        data: bytes,
        title: str | None = None,
        metadata: Metadata | None = None,
        sizes: tuple[int, int] | None = None,
    ) -> Added:
        """Take in a file, or find that the collection has it."""

    async def list(
        self, tenant: str, collection: str | None = None, limit: int = 100, after: str | None = None
    ) -> tuple[Document, ...]:
        """A page of documents."""

    async def delete(self, tenant: str, document_id: str) -> Document:
        """Forget a document."""


class Shelving:
    """One worker."""

    def __init__(
        self, pool: asyncpg.Pool, librarian: Takes, *, rest_s: float = REST_S, retry_s: float = RETRY_S
    ) -> None:
        self._pool, self._librarian = pool, librarian
        self._rest_s, self._retry_s = rest_s, retry_s
        self._looked_at = float("-inf")

    async def forever(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                async with working(self._pool) as work:
                    while work is not None:
                        if not await self.once(work):
                            await asyncio.sleep(self._rest_s)
            except MindFuError as error:
                logger.warning("Vector stores wait: %s", error)
            except Exception:  # a loop's edge: one bad file must not end it
                logger.exception("the work of vector stores failed, and will be tried again")
            await asyncio.sleep(self._retry_s)

    async def once(self, work: Work) -> int:
        """Do what is to do now, up to a batch. Returns how much. Raises Unavailable, with the rest left to do."""
        look = time.monotonic() - self._looked_at >= EXPIRY_S
        if look:
            await work.expire()
            self._looked_at = time.monotonic()
        tasks = await work.tasks(BATCH)
        for start in range(0, len(tasks), TOGETHER):
            await self._work(work, tasks[start : start + TOGETHER])
        for tenant, shelf_id in await work.empty() if tasks or look else ():
            await self._clear(tenant, shelf_id)
            await work.sweep(shelf_id)
        return len(tasks)

    async def _work(self, work: Work, tasks: tuple[Task, ...]) -> None:
        """A few files together: PostgreSQL by one connection in turn, reading and indexing at the same time."""
        coming: list[tuple[Task, bytes]] = []
        for task in tasks:
            if task.document_id is not None:  # it leaves, or is to come anew
                await self._release(work, task, task.document_id)
                await work.disown(task)
            if task.leaving:
                await work.left(task)
            elif not task.uploaded:
                await work.failed(task, "invalid_file", "The file was deleted before it was read.")
            else:
                coming.append((task, await work.data(task)))
        added = await asyncio.gather(*(self._add(*one) for one in coming), return_exceptions=True)
        for (task, _), one in zip(coming, added, strict=True):
            await self._came(work, task, one)

    async def _add(self, task: Task, data: bytes) -> Added:
        cut = task.chunking
        sizes = None if cut is None else (CHARS_PER_TOKEN * cut.tokens, CHARS_PER_TOKEN * cut.overlap)
        place = (task.tenant, task.shelf_id, task.name, task.media_type, data)
        return await self._librarian.add_file(*place, title=None, metadata=None, sizes=sizes)

    async def _came(self, work: Work, task: Task, added: Added | BaseException) -> None:
        if isinstance(added, Added):
            document = added.document
            if not await work.came(task, document.id, document.size):  # it was cancelled or taken off meanwhile
                await self._release(work, task, document.id)
        elif isinstance(added, Unavailable):
            raise added
        elif isinstance(added, MindFuError):
            await work.failed(task, _code(added), str(added))
        elif isinstance(added, Exception):
            logger.error("A file could not be put on a vector store.", exc_info=added)
            await work.failed(task, "server_error", "An internal error; the server's log has it.")
        else:
            raise added

    async def _release(self, work: Work, task: Task, document_id: str) -> None:
        """Forget a document, unless another file of the shelf is the same."""
        if not await work.shared(task, document_id):
            await self._delete(task.tenant, document_id)

    async def _clear(self, tenant: str, shelf_id: str) -> None:
        """What a crash may have left on a shelf."""
        while documents := await self._librarian.list(tenant, shelf_id):
            for document in documents:
                await self._delete(tenant, document.id)

    async def _delete(self, tenant: str, document_id: str) -> None:
        try:
            await self._librarian.delete(tenant, document_id)
        except NotFound:
            logger.debug("%s is gone already", document_id)


def _code(error: MindFuError) -> ErrorCode:
    """As OpenAI calls what is wrong with a file."""
    if isinstance(error, UnsupportedMedia):
        return "unsupported_file"
    return "invalid_file" if error.status < 500 else "server_error"
