"""The work of memory, in the background of the librarian: makes recorded turns findable, and deleted ones unfindable.

Of all processes with one database one works at a time. What is to do stands in PostgreSQL, so a crash or a restart
loses nothing; every step may be done twice. Nobody waits for it: an answer is recorded without a thought of memory.
While people talk it rests behind every few turns, so that their answers come first, and catches up when they do not.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from app.errors import MindFuError, Unavailable
from app.memory import COLLECTION, Due, Exchange, Memory, Work, memory_id
from app.messages import Chunk, Index

BATCH = 32  # turns of one look at the queue
TOGETHER = 4  # that are embedded at a time, so that passes are full and queries still come between
REST_S = 1.0  # between two looks when there is nothing to do
RETRY_S = 5.0  # while something is away, or somebody else works
TALKING_S = 5.0  # since the latest turn was recorded, for which people are taken to talk
WAY, MOST_S = 9.0, 1.0  # while they do it rests so many times as long as it worked, and at most so long

logger = logging.getLogger(__name__)


class Indexes(Protocol):
    """What it needs of the retriever."""

    async def index(self, index: Index) -> int:
        """Make a document's chunks findable. Idempotent."""

    async def forget(self, collection: str, document_id: str, tenant: str) -> None:
        """Make them unfindable. Idempotent."""


class Remembering:
    """One worker. cut: a text into chunks, none for an empty one."""

    def __init__(
        self,
        memory: Memory,
        retriever: Indexes,
        cut: Callable[[str], tuple[Chunk, ...]],
        *,
        rest_s: float = REST_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._memory, self._retriever, self._cut = memory, retriever, cut
        self._rest_s, self._retry_s = rest_s, retry_s

    async def forever(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                async with self._memory.working() as work:
                    while work is not None:
                        if not await self.once(work, way=WAY):
                            await asyncio.sleep(self._rest_s)
            except MindFuError as error:
                logger.warning("Remembering waits: %s", error)
            except Exception:  # a loop's edge: memory must not end with one bad turn
                logger.exception("remembering failed, and will be tried again")
            await asyncio.sleep(self._retry_s)

    async def once(self, work: Work, *, way: float = 0.0) -> int:
        """Do what is due now, up to a batch. Returns how much. Raises Unavailable, with the rest left in the queue.

        way: how many times as long as a few turns took it rests behind them, while people talk.
        """
        gone = await work.forgotten(BATCH)
        for turn in gone:
            await self._retriever.forget(COLLECTION, memory_id(turn.turn_id, turn.created_at), turn.tenant)
        if gone:
            await work.cleared(gone)
        due = await work.unremembered(BATCH)
        failed: list[Exception] = []
        for start in range(0, len(due), TOGETHER):
            began = time.perf_counter()
            failed += await self._remember(work, due[start : start + TOGETHER])
            if (datetime.now(UTC) - due[0].asked_at).total_seconds() < TALKING_S:
                await asyncio.sleep(min(MOST_S, way * (time.perf_counter() - began)))
        if failed:
            logger.error("%d turns could not be remembered, and are tried again later: %s", len(failed), failed[-1])
        return len(gone) + len(due)

    async def _remember(self, work: Work, due: tuple[Due, ...]) -> list[Exception]:
        """A few turns together: PostgreSQL by one connection in turn, the embedder at the same time.

        Returns what went wrong with some of them.
        """
        failed: list[Exception] = []
        found = [(one, await work.exchange(one.turn_id)) for one in due]
        there = [(one, exchange) for one, exchange in found if exchange is not None]
        indexed = await asyncio.gather(*(self._index(*turn) for turn in there), return_exceptions=True)
        for (one, exchange), chunks in zip(there, indexed, strict=True):
            if isinstance(chunks, Unavailable):
                raise chunks
            if isinstance(chunks, Exception):
                await work.failed(one.turn_id)
                failed.append(chunks)
            elif isinstance(chunks, BaseException):
                raise chunks
            elif not await work.remembered(one, chunks):  # deleted while we worked on it
                await self._forget(one, exchange)
        return failed

    async def _index(self, due: Due, exchange: Exchange) -> int:
        chunks = await asyncio.to_thread(self._cut, exchange.text) if exchange.text else ()
        if chunks:
            document_id = memory_id(due.turn_id, exchange.created_at)
            await self._retriever.index(
                Index(
                    tenant=exchange.tenant,
                    collection=COLLECTION,
                    document_id=document_id,
                    title=exchange.title,
                    chunks=chunks,
                )
            )
        elif exchange.chunks:
            await self._forget(due, exchange)
        return len(chunks)

    async def _forget(self, due: Due, exchange: Exchange) -> None:
        await self._retriever.forget(COLLECTION, memory_id(due.turn_id, exchange.created_at), exchange.tenant)
