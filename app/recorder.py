"""Keeps every turn: in PostgreSQL, or in the spool until PostgreSQL is back.

    async with Recorder.open(url, home) as recorder:     # starts although PostgreSQL may be away
        place = await recorder.locate(tenant, messages)  # None while that cannot be known
        await recorder.record(turn)                      # returns when the turn is safe, within seconds

While the spool holds anything new turns join it, so that none is recorded before its parent. A background task replays
it in order; the unique request id makes a turn that was committed already change nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import asyncpg

from app.conversations import Conversations, Place, Recorded, Turn
from app.errors import Unavailable
from app.memory import Memory
from app.messages import Message
from app.postgres import open_pool, reaching_postgres
from app.spool import Spool

DIRECT_S = 2.0  # how long a request waits for PostgreSQL
READ_S = 10.0  # how long one that cannot do without what is kept waits
REPLAY_S = 30.0  # how long the replay of one turn may take
STATE_S = 1.0  # how long a health check waits
LOOK_S = 5.0  # a process that died may have left turns behind
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)
CLOSE_S = 5.0  # then open connections are cut

# What is wrong with the turn itself and will not change. All else is tried again, and blocks the turns behind it.
REJECTED = (
    asyncpg.DataError,  # class 22
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ProgramLimitExceededError,  # 54: larger than PostgreSQL stores
    ValueError,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Recorder:
    """Records turns into one database, with one spool."""

    def __init__(self, pool: asyncpg.Pool, spool: Spool) -> None:
        self.pool, self.spool = pool, spool
        self.conversations, self.memory = Conversations(pool), Memory(pool)
        self._spooled = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str | None, home: Path) -> AsyncIterator[Self]:
        """A recorder with its own pool (see `open_pool`) and the spool of `home`. Raises Misconfigured."""
        recorder = cls(await open_pool(url, home), Spool(home / "spool"))
        replaying = asyncio.create_task(recorder.replay_forever())
        try:
            yield recorder
        finally:
            replaying.cancel()
            await asyncio.gather(replaying, return_exceptions=True)
            await recorder._close()

    async def record(self, turn: Turn) -> Recorded:
        """Keep a turn. Returns when it is committed or on the disk, which takes seconds at most.

        A caller that is cancelled does not stop the recording.
        """
        return await asyncio.shield(self._task(self._record(turn)))

    async def locate(
        self,
        tenant: str,
        messages: Sequence[Message],
        conversation_id: str | None = None,
        key_id: str | None = None,
    ) -> Place | None:
        """What a request continues, see `Conversations.locate`. None: not known while PostgreSQL or turns are away.

        Raises NotFound for a named conversation that the tenant does not have.
        """
        if self.pending():
            return None
        try:
            return await self._within(DIRECT_S, self.conversations.locate(tenant, messages, conversation_id, key_id))
        except Unavailable as error:
            logger.warning("Not looking for the conversation of a request. %s", error)
            return None

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """What a store gives that works on our pool. Raises Unavailable within seconds, also when nothing answers."""
        return await self._within(READ_S, work)

    def pending(self) -> int:
        """How many turns wait in the spool."""
        return self.spool.pending()

    async def state(self) -> str:
        """`ok`, or why PostgreSQL does not answer."""
        try:
            await self._within(STATE_S, self._ping())
        except Unavailable as error:
            return error.reason
        return "ok"

    async def replay_forever(self) -> None:
        """Empty the spool whenever it holds something. `open` runs this."""
        failures = 0
        while True:
            if self.pending():
                failures = 0 if await self._replay_once() else failures + 1
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                continue
            self._spooled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._spooled.wait()

    async def _record(self, turn: Turn) -> Recorded:
        if not self.pending():
            try:
                return await self._within(DIRECT_S, self.conversations.record(turn))
            except Exception as error:  # noqa: BLE001 – whatever it is, the turn is not lost; the replay judges it
                logger.warning("A turn goes to the spool. %s: %s", type(error).__name__, error)
        await asyncio.to_thread(self.spool.add, turn)
        self._spooled.set()
        return Recorded(turn.id, None)

    async def _replay_once(self) -> bool:
        """Record what waits, the oldest first. False: stopped by a failure that may pass."""
        with self.spool.replaying() as alone:
            if not alone:
                return False
            for path in self.spool.waiting():
                try:
                    if turn := await asyncio.to_thread(self.spool.read, path):
                        await self._within(REPLAY_S, self.conversations.record(turn))
                        path.unlink()
                except REJECTED as error:
                    self.spool.set_aside(path, error)
                except Exception as error:  # noqa: BLE001 – the loop's edge: logged, and tried again
                    logger.warning("%d turns wait in the spool. %s: %s", self.pending(), type(error).__name__, error)
                    return False
        return True

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, or Unavailable. Does not wait for the work to notice that it was given up."""
        task = self._task(work)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            task.cancel()
            raise Unavailable("database", f"no answer within {seconds:g} s")
        return task.result()

    async def _ping(self) -> None:
        with reaching_postgres():
            await self.pool.fetchval("select 1")

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever gave the task up has said so

    async def _close(self) -> None:
        """Finish what is under way, and let the connections go."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()
