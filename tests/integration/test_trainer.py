"""The trainer works on runs in processes of their own, and asks for some by itself: real processes, no stand-ins."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import psutil
import pytest

from app.conversations import Conversations
from app.errors import Unavailable
from app.feedback import FeedbackStore
from app.messages import Message
from app.postgres import open_pool
from app.postgres_home import PostgresHome
from app.runs import ENDED, Order, Run, Runs
from app.settings import Settings, TrainingSettings
from app.turns import Turn
from deployments.trainer import Trainer, Unattended
from deployments.training import Children, Queue

pytestmark = pytest.mark.integration


@pytest.fixture
def home(postgres_home: Path) -> Path:
    return postgres_home


@pytest.fixture
async def runs(pool: asyncpg.Pool) -> Runs:
    return Runs(pool)


@pytest.fixture
def children(home: Path) -> Iterator[Children]:
    made = Children(home)
    yield made
    made.close()


def shop(folder: Path, count: int) -> Path:
    """Conversations."""
    file = folder / "shop.jsonl"
    said = [
        [{"role": "user", "content": f"Where is order {n}?"}, {"role": "assistant", "content": f"Number {n} is here."}]
        for n in range(count)
    ]
    file.write_text("\n".join(json.dumps({"messages": messages}) for messages in said))
    return file


async def until(runs: Runs, run: Run, wanted: Callable[[Run], bool], queue: Queue | None = None) -> Run:
    """Wait for a run, and work on the queue meanwhile."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(Unavailable):  # the database comes back
                if wanted(found := await runs.get(None, run.id)):
                    return found
                if queue:
                    await queue.once()
            await asyncio.sleep(0.05)


def ended(run: Run) -> bool:
    return run.state in ENDED


async def test_a_run_without_data_fails_with_a_sentence(runs: Runs, children: Children):
    """In its first half minute: nobody rated or corrected anything."""
    run = await runs.add("default", Order(), "http")
    done = await until(runs, run, ended, Queue(runs, children))
    assert (done.state, done.error_code) == ("failed", "nothing_to_learn")
    assert done.error
    assert done.error.startswith("Found 0 rated or corrected answers in 0 conversations, needed 1.")
    stages = await runs.stages(run.id)
    assert done.finished_at
    assert done.finished_at - stages[0].started_at < timedelta(seconds=30)


async def rated(pool: asyncpg.Pool, count: int, tenant: str = "default") -> None:
    """Conversations whose answers somebody rated up."""
    for number in range(count):
        turn = Turn(
            tenant=tenant, request_id=str(uuid4()), messages=(Message(role="user", content=f"Where is {number}?"),),
            answer=Message(role="assistant", content=f"Number {number} is here, at {number * 7}."), model="m",
            latency_s=0.1, status="complete", finish_reason="stop", created_at=datetime.now(UTC),
        )  # fmt: skip
        await Conversations(pool).record(turn)
        await FeedbackStore(pool).give(turn.id, "", {"rating": 1.0})


async def test_a_run_learns_from_what_its_tenant_rated(runs: Runs, children: Children, tmp_path: Path):
    """And from files beside it; a file with nothing in it stops nothing."""
    await rated(runs._pool, 12)
    await rated(runs._pool, 5, "other")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    order = Order(
        paths=(str(empty), str(shop(tmp_path, 20))), until="validate", parameters={"validate": {"redact": False}}
    )
    run = await runs.add("default", order, "http")
    done = await until(runs, run, ended, Queue(runs, children))
    assert done.state == "succeeded", done.error
    stages = {stage.name: stage.counts for stage in await runs.stages(run.id)}
    assert stages["export"]
    assert stages["validate"]
    assert (stages["export"]["conversations"], stages["export"]["lines"]) == (12, 12)
    assert stages["validate"]["data.jsonl read"] == 32
    told = [event.text for event in await runs.events_since(run.id) if event.level == "warn"]
    assert told[0].startswith("convert has nothing: Found 0 conversations that can be read")


async def test_one_class_of_ratings_teaches_no_preference(runs: Runs, children: Children):
    """Said before anything is looked at closely."""
    await rated(runs._pool, 12)
    run = await runs.add("default", Order(parameters={"tune": {"method": "dpo"}}), "http")
    done = await until(runs, run, ended, Queue(runs, children))
    assert (done.state, done.error_code) == ("failed", "nothing_to_learn")
    assert done.error
    assert done.error.startswith("Found 0 preferences (a corrected answer, or one rated up beside one rated down)")
    assert [stage.name for stage in await runs.stages(run.id)] == ["export"]


async def test_a_killed_process_and_a_killed_database_lose_nothing(tmp_path: Path):
    """Another attempt goes on where the first ended, with the data that it had."""
    home = tmp_path / "home"
    pool = await open_pool(None, home)
    runs, children = Runs(pool), Children(home)
    plain = {"validate": {"redact": False}}  # which loads faster
    order = Order(conversations=False, paths=(str(shop(tmp_path, 400)),), until="split", parameters=plain)
    run = await runs.add("default", order, "http")
    queue = Queue(runs, children)

    async def begun() -> bool:
        return any(stage.name == "validate" for stage in await runs.stages(run.id))

    async with asyncio.timeout(60):
        while not await begun():
            await queue.once()
            await asyncio.sleep(0.02)
    assert children._child
    os.killpg(children._child[2].pid, signal.SIGKILL)
    postmaster = PostgresHome(home).postmaster()
    assert postmaster
    os.kill(postmaster, signal.SIGKILL)
    done = await until(runs, run, ended, queue)
    assert (done.state, done.attempt) == ("succeeded", 2)
    counts = {stage.name: stage.counts for stage in await runs.stages(run.id)}
    assert counts["split"]
    assert sum(int(str(counts["split"][part])) for part in ("train", "validation", "test")) > 0
    told = [event.text for event in await runs.events_since(run.id)]
    assert "Attempt 2: it goes on where the one before ended." in told
    assert sum(text.startswith("convert:") for text in told) == 1
    children.close()
    await pool.close()


@pytest.fixture
def deaf() -> Iterator[None]:
    """Processes that are started meanwhile are not interrupted, as Ray starts its jobs."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


async def test_a_cancelled_run_ends_within_seconds(deaf: None, runs: Runs, children: Children, tmp_path: Path):
    """Its process is gone, and the next one in the queue begins."""
    order = Order(conversations=False, paths=(str(shop(tmp_path, 3_000)),), until="split")
    run = await runs.add("default", order, "http")
    queue = Queue(runs, children)
    await until(runs, run, lambda found: found.progress is not None and found.progress.stage == "validate", queue)
    await runs.cancel("default", run.id)
    done = await until(runs, run, ended, queue)
    assert done.state == "cancelled"
    assert children._child
    assert children._child[2].wait(30) == 0


async def test_the_trainer_takes_up_what_another_one_left(home: Path, runs: Runs, children: Children):
    """Whoever worked on it is silent; the run is begun anew and ends."""
    run = await runs.add("default", Order(), "http")
    lost = await runs.claim()
    assert lost
    await runs.lose(lost)
    trainer = Trainer(Settings(), home, children)
    try:
        done = await until(runs, run, ended)
    finally:
        await trainer.close()
    assert (done.state, done.attempt, done.error_code) == ("failed", 2, "nothing_to_learn")


class Clock:
    """Tomorrow noon, so that a run that was made just now is of the past."""

    def __init__(self) -> None:
        self.time = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=1)

    def __call__(self) -> datetime:
        return self.time


async def test_a_schedule_starts_a_run_once_each_time(runs: Runs, home: Path):
    """And none for the times before the server began."""
    clock = Clock()
    settings = Settings(training=TrainingSettings(schedule="0 3 * * *", promote=True))
    unattended = Unattended(runs, settings, home, now=clock)
    assert await unattended.once() is None
    clock.time += timedelta(hours=15)
    run = await unattended.once()
    assert run
    assert (run.origin, run.order.promote, run.tenant) == ("schedule", True, "default")
    assert await unattended.once() is None
    clock.time += timedelta(days=1)
    assert await unattended.once()


async def test_enough_ratings_start_a_run(runs: Runs, home: Path):
    """So many since the last one; then it counts from the beginning."""
    pool: asyncpg.Pool = runs._pool
    settings = Settings(training=TrainingSettings(after_ratings=2))
    unattended = Unattended(runs, settings, home)
    for number in range(2):
        assert await unattended.once() is None
        turn = Turn(
            tenant="default", request_id=str(uuid4()), messages=(Message(role="user", content=str(number)),),
            answer=Message(role="assistant", content="Hi."), model="m", latency_s=0.1, status="complete",
            created_at=datetime.now(UTC),
        )  # fmt: skip
        await Conversations(pool).record(turn)
        await FeedbackStore(pool).give(turn.id, "", {"rating": 1.0})
    run = await unattended.once()
    assert run
    assert run.origin == "threshold"
    assert await unattended.once() is None


def test_a_schedule_that_is_none_is_refused():
    """With an example of one."""
    with pytest.raises(ValueError, match="is no time as cron has it"):
        TrainingSettings(schedule="at night")


@pytest.fixture(autouse=True)
async def nothing_is_left_running(home: Path) -> AsyncIterator[None]:
    yield
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            assert "train.run" not in " ".join(process.cmdline())
