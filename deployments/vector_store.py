"""The VectorStore deployment: the one process that owns the embedded Qdrant, behind the interface of app/vectors.py.

Exactly one replica, and without surge: its folder is locked, so a new replica waits for the old one to leave. The
engine blocks, so it works in one thread, call after call.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from app.messages import Index, Passage
from app.vectors import Floats, Page, Query, Space
from app.vectors_edge import EdgeVectors

P = ParamSpec("P")
T = TypeVar("T")


class VectorStore:
    """home: the folder of all embedded stores. lock_wait_s: how long to wait for the process that still has ours."""

    def __init__(self, home: Path, *, lock_wait_s: float = 30.0) -> None:
        self._edge = EdgeVectors(home / "qdrant", lock_wait_s=lock_wait_s)
        self._thread = ThreadPoolExecutor(1, "edge")

    async def create(self, collection: str, space: Space) -> None:
        await self._run(self._edge.create, collection, space)

    async def upsert(self, index: Index, vectors: Floats) -> None:
        await self._run(self._edge.upsert, index, vectors)

    async def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        await self._run(self._edge.delete, collection, tenant, document_id, from_chunk)

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

    async def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        return await self._run(self._edge.count, collection, tenant, document_id)

    async def check_health(self) -> None:
        """Return when the engine's thread has a moment."""
        await self._run(lambda: None)

    async def close(self) -> None:
        """Flush, close the shards, and let the folder go."""
        await self._run(self._edge.close)
        self._thread.shutdown()

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))
