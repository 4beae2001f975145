"""Whatever dies in the middle of a promotion: the desired state is whole, and the next promotion works."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from gguf_factory import constant_adapter

from app.desired import Desired
from app.following import Follower
from app.postgres_home import PostgresHome
from app.promotion import promote
from app.registry import SQL, Holding, Holdings, Registry

pytestmark = pytest.mark.integration


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 — what is awaited happens in other processes
            await asyncio.sleep(0.01)


class Cluster:
    """A gateway, and an engine that loads nothing as long as `ready` is not set."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.ready, self.asked = registry, asyncio.Event(), False
        self.gateway = Follower("gateway", registry)
        self.engine = Follower("engine", registry, self._converge)

    async def _converge(self, desired: Desired) -> Holdings:
        resident = desired.of("m").resident
        self.asked = self.asked or bool(resident)
        if resident:
            await self.ready.wait()
        return {"m": Holding(loaded=resident)}

    async def champion(self) -> str | None:
        return (await self.registry.desired()).of("m").champion


@pytest.fixture
async def cluster(pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[Cluster]:
    registry = Registry(pool, tmp_path)
    await registry.add("m", "v1", constant_adapter(tmp_path / "v1.gguf", ord("x")), verdict="passed")
    cluster = Cluster(registry)
    await cluster.gateway.start()
    await cluster.engine.start()
    yield cluster
    await cluster.gateway.close()
    await cluster.engine.close()


async def test_a_promotion_waits_for_a_postgresql_that_was_killed(cluster: Cluster, postgres_home: Path):
    """It starts again, processes say again what they hold, and the promotion counts on all of them as before."""
    promotion = asyncio.create_task(promote(cluster.registry, "m", "v1"))
    await until(lambda: cluster.asked)
    killed = PostgresHome(postgres_home).postmaster()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await until(lambda: PostgresHome(postgres_home).postmaster() not in (killed, None))
    cluster.ready.set()
    done = await promotion
    assert (done.champion, done.engines, done.gateways) == ("v1", 1, 1)
    assert [change.kind for change in await cluster.registry.changes("m")] == ["promote"]
    assert cluster.gateway.desired.of("m").champion == "v1"


async def test_a_promoter_that_is_killed_changes_nothing(cluster: Cluster, postgres_home: Path):
    """Nobody is answered by what it had begun to load; its lock goes with it, and the same promotion works again."""
    url = f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}"
    command = [sys.executable, "-m", "deployments.cli", "promote", "m@v1"]
    environment = os.environ | {"MINDFU_HOME": str(cluster.registry.home), "MINDFU_POSTGRES_URL": url}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    await until(lambda: cluster.asked)
    process.kill()
    await process.wait()
    assert await cluster.champion() is None
    assert await cluster.registry.changes("m") == ()
    cluster.ready.set()
    await until(lambda: cluster.engine.desired.of("m").staged == "v1")
    async with asyncio.timeout(20), cluster.registry.pool.acquire() as connection:
        while not await connection.fetchval(SQL["try_lock"], "m"):  # noqa: ASYNC110 — PostgreSQL sees that it is gone
            await asyncio.sleep(0.01)
        await connection.execute(SQL["unlock"], "m")
    assert (await promote(cluster.registry, "m", "v1")).champion == "v1"


async def test_a_replica_that_dies_is_waited_for_until_its_silence_tells(cluster: Cluster, pool: asyncpg.Pool):
    """Then the promotion goes on with those that live."""
    promotion = asyncio.create_task(promote(cluster.registry, "m", "v1"))
    await until(lambda: cluster.asked)
    cluster.engine.abandon()
    await pool.execute("update serving_members set seen_at = now() - interval '11 seconds' where part = 'engine'")
    done = await promotion
    assert (done.champion, done.engines, done.gateways) == ("v1", 0, 1)
