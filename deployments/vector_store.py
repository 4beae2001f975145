"""The VectorStore deployment: the one process that owns the embedded Qdrant, behind the interface of app/vectors.py.

Exactly one replica, and without surge: its folder is locked, so a new replica waits for the old one to leave. The
engine blocks, so it works in one thread, call after call. Some seconds after a write it is flushed to the disk, and
collections that have grown slow are indexed in a child process, on a copy that then takes over.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.errors import MindFuError, Unavailable
from app.messages import Chunk, Index, Passage
from app.neighbours import Place
from app.vectors import Floats, Page, Query, Space
from app.vectors_edge import OPTIMIZE_FROM, EdgeVectors

P = ParamSpec("P")
T = TypeVar("T")

TURN = 32  # chunks of an upsert, some 15 ms of the engine's thread, between which others have their turn

log = logging.getLogger(__name__)


class VectorStore:
    """home: the folder of all embedded stores. lock_wait_s: how long to wait for the process that still has ours."""

    def __init__(
        self, home: Path, *, lock_wait_s: float = 30.0, rest_s: float = 5.0, optimize_from: int = OPTIMIZE_FROM
    ) -> None:
        self._edge = EdgeVectors(home / "qdrant", lock_wait_s=lock_wait_s)
        self._thread = ThreadPoolExecutor(1, "edge")
        self._rest_s, self._optimize_from = rest_s, optimize_from
        self._upkeep: asyncio.Task[None] | None = None

    async def create(self, collection: str, space: Space) -> None:
        await self._run(self._edge.create, collection, space)

    async def upsert(self, index: Index, vectors: Floats) -> None:
        await self._run(self._edge.check, index, vectors)
        for start in range(0, len(index.chunks), TURN):
            part = index.model_copy(update={"chunks": index.chunks[start : start + TURN]})
            await self._run(self._edge.upsert, part, vectors[start : start + TURN])
        self._written()

    async def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        await self._run(self._edge.delete, collection, tenant, document_id, from_chunk)
        self._written()

    async def search(self, query: Query) -> tuple[Passage, ...]:
        return await self._run(self._edge.search, query)

    async def scroll(
        self,
        collection: str,
        tenant: str,
        document_id: str | None = None,
        after: str | None = None,
        limit: int = 256,
    ) -> Page:
        return await self._run(self._edge.scroll, collection, tenant, document_id, after, limit)

    async def read(self, tenant: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        return await self._run(self._edge.read, tenant, places)

    async def space(self, collection: str) -> Space | None:
        return await self._run(self._edge.space, collection)

    async def fetch(self, collection: str, tenant: str, document_id: str) -> tuple[Index, Floats] | None:
        return await self._run(self._edge.fetch, collection, tenant, document_id)

    async def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        return await self._run(self._edge.count, collection, tenant, document_id)

    async def check_health(self) -> None:
        """Return when the engine's thread has a moment."""
        await self._run(lambda: None)

    async def close(self) -> None:
        """Flush, close the shards, and let the folder go."""
        if self._upkeep:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        await self._run(self._edge.close)
        self._thread.shutdown()

    def _written(self) -> None:
        if self._upkeep is None or self._upkeep.done():
            self._upkeep = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        """Until everything is on the disk and fast to search. A failure is logged and tried again after a rest."""
        due: tuple[str, ...] = ()
        while self._edge.dirty or due:
            await asyncio.sleep(self._rest_s)
            try:
                await self._run(self._edge.flush)
                due = await self._run(self._edge.due, self._optimize_from)
                for collection in due:
                    await self._optimize(collection)
            except MindFuError:
                log.exception("upkeep of the vector store failed")

    async def _optimize(self, collection: str) -> None:
        copy = await self._run(self._edge.fork, collection)
        try:
            command = (sys.executable, "-m", "app.vectors_edge", str(copy))
            child = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parents[1])
            try:
                failed = await child.wait()
            except asyncio.CancelledError:
                child.kill()
                await child.wait()
                raise
            if failed:
                raise Unavailable("vector store", f"optimising '{collection}' ended with {failed}")
            await self._run(self._edge.adopt, collection, copy)
        except BaseException:
            await self._run(self._edge.abandon, collection)
            raise
        log.info("optimised collection '%s'", collection)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))
