"""The Trainer deployment: works on queued training runs, one at a time, and asks for some by itself.

Any number of replicas may run; of all with one database one works at a time. What there is to do stands in PostgreSQL,
and each run works in a Ray job of its own: a trainer that dies loses nothing. No request waits for it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from cronsim import CronSim

from app import params
from app.errors import MindFuError
from app.forgetting import sweep
from app.lending import left_over
from app.postgres import open_pool, reaching_postgres
from app.registry import Registry
from app.runs import Order, Origin, Run, Runs
from app.settings import Secrets, Settings, TrainingSettings, params_file
from deployments.ordering import parameters_for, require_training
from deployments.training import Launcher, Queue

REST_S = 1.0
RETRY_S = 5.0
UNATTENDED_S = 15.0  # between two looks at ratings and the clock
LOCK = 7_266_883_110  # any number, ours alone
log = logging.getLogger(__name__)


class Trainer:
    """Must be made where an event loop runs. launcher: starts the processes that work on runs; None: Ray jobs."""

    def __init__(self, settings: Settings, home: Path, launcher: Launcher | None = None) -> None:
        self._settings, self._home = settings, home
        self._launcher = launcher or _ray_jobs(home)
        self._working = asyncio.create_task(self._forever())

    async def check_health(self) -> None:
        """Return: this process answers. What it works on stands in PostgreSQL."""

    async def close(self) -> None:
        """Stop. A run that is under way goes on."""
        self._working.cancel()
        await asyncio.gather(self._working, return_exceptions=True)

    async def _forever(self) -> None:
        url = Secrets.from_env().postgres_url
        pool = await open_pool(url.get_secret_value() if url else None, self._home)
        try:
            while True:
                try:
                    async with _alone(pool) as free:
                        if free:
                            await self._work(pool)
                except MindFuError as error:
                    log.warning("Training waits: %s", error)
                except Exception:  # a loop's edge: one bad run must not end it
                    log.exception("working on training runs failed, and will be tried again")
                await asyncio.sleep(RETRY_S)
        finally:
            await pool.close()

    async def _work(self, pool: asyncpg.Pool) -> None:
        runs = Runs(pool)
        queue = Queue(runs, self._launcher)
        unattended = Unattended(runs, self._settings, self._home)
        looked_at = float("-inf")
        while True:
            running = await queue.once()
            now = asyncio.get_running_loop().time()
            if running is None and now - looked_at >= UNATTENDED_S:
                looked_at = now
                await left_over(runs, Registry(pool, self._home))
                await unattended.once()
                await sweep(pool, self._home)
            await asyncio.sleep(REST_S)


class Unattended:
    """Asks for runs: when it is time, and when people have rated enough."""

    def __init__(
        self,
        runs: Runs,
        settings: Settings,
        home: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone(),
    ) -> None:
        self._runs, self._settings, self._home, self._now = runs, settings, home, now
        self._since = now()  # a schedule begins with the process that heeds it, unless it ran before

    async def once(self) -> Run | None:
        """Ask for a run, if it is time. Raises MindFuError."""
        origin = await self._due(self._settings.training)
        if origin is None:
            return None
        require_training()
        return await self._runs.add(self._settings.training.tenants[0], self._order(), origin)

    async def _due(self, wanted: TrainingSettings) -> Origin | None:
        if wanted.schedule is not None:
            latest = await self._runs.latest(["schedule"])
            since = max(self._since, latest.astimezone(self._since.tzinfo)) if latest else self._since
            if next(CronSim(wanted.schedule, since)) <= self._now():
                self._since = self._now()
                return "schedule"
        if wanted.after_ratings is not None and await self._runs.taught(wanted.tenants) >= wanted.after_ratings:
            return "threshold"
        return None

    def _order(self) -> Order:
        wanted, llm = self._settings.training, self._settings.llm
        told = parameters_for(llm.name, llm, self._home)
        changed = params.changed(told, {"export": {"tenants": list(wanted.tenants)}})
        return Order(parameters=changed, promote=wanted.promote)


@asynccontextmanager
async def _alone(pool: asyncpg.Pool) -> AsyncIterator[bool]:
    """The right to work, on a connection of its own: if that is lost, so is the right."""
    with reaching_postgres():
        connection = await pool.acquire()
    try:
        with reaching_postgres():
            free = bool(await connection.fetchval("select pg_try_advisory_lock($1)", LOCK))
        yield free
    finally:
        with reaching_postgres():
            await pool.release(connection)  # which unlocks


def _ray_jobs(home: Path) -> Launcher:
    from deployments.ray_jobs import RayJobs

    # Workers without a GPU of their own by Ray's counting see those that serving lent (app/lending.py).
    return RayJobs(home, {"MINDFU_PARAMS": str(params_file()), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})
