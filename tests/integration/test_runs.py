"""Runs in a real PostgreSQL: one after the other, taken over when a process dies, and never written by two."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from app.conversations import Conversations, Turn
from app.errors import Conflict, NotFound, Unavailable
from app.feedback import FeedbackStore, Opinion
from app.messages import Message
from app.runs import MOST_ATTEMPTS, Order, Progress, Run, Runs
from deployments.training import Alive, Queue

pytestmark = pytest.mark.integration


@pytest.fixture
async def runs(pool: asyncpg.Pool) -> Runs:
    return Runs(pool)


async def test_a_run_is_kept_with_all_that_it_is_to_do(runs: Runs):
    """What was asked for comes back as it was, NUL and all."""
    order = Order(dataset="org/name", parameters={"tune": {"epochs": 2, "base": "a\0b"}}, promote=True)
    run = await runs.add("acme", order, "http")
    assert (run.state, run.attempt, run.order) == ("queued", 0, order)
    assert await runs.get("acme", run.id) == run
    with pytest.raises(NotFound):
        await runs.get("other", run.id)


async def test_runs_are_worked_on_one_after_the_other_in_the_order_of_asking(runs: Runs):
    """Whoever asks for work gets the oldest, once; the next when that has ended."""
    first, second = [await runs.add("default", Order(), "http") for _ in range(2)]
    claimed = await asyncio.gather(*(runs.claim() for _ in range(4)))
    [mine] = [run for run in claimed if run]
    assert (mine.id, mine.attempt, mine.state) == (first.id, 1, "running")
    assert await runs.claim() is None
    assert await runs.finish(mine, "succeeded", result={"verdict": "passed"})
    following = await runs.claim()
    assert following
    assert following.id == second.id
    assert (await runs.get(None, first.id)).result == {"verdict": "passed"}


async def test_a_silent_process_loses_its_run_and_can_write_no_more(runs: Runs):
    """The one that takes it over is another attempt; the first is told so, and its end is not the run's."""
    await runs.add("default", Order(), "http")
    first = await runs.claim()
    assert first
    assert await runs.beat(first, Progress(stage="tune", done=3, total=9)) == "go on"
    await runs.lose(first)
    second = await runs.claim()
    assert second
    assert (second.id, second.attempt) == (first.id, 2)
    assert second.progress
    assert second.progress.done == 3
    assert await runs.beat(first) == "lost"
    assert not await runs.finish(first, "failed")
    assert (await runs.get(None, first.id)).state == "running"


async def test_cancelling_ends_what_waits_and_tells_what_runs(runs: Runs):
    """A run that has ended cannot be cancelled, and another tenant's not at all."""
    running, waiting = [await runs.add("default", Order(), "http") for _ in range(2)]
    claimed = await runs.claim()
    assert claimed
    assert (await runs.cancel("default", waiting.id)).state == "cancelled"
    assert (await runs.cancel("default", running.id)).state == "running"
    assert await runs.beat(claimed) == "cancel"
    await runs.finish(claimed, "cancelled")
    with pytest.raises(Conflict, match="has cancelled already"):
        await runs.cancel("default", running.id)
    with pytest.raises(NotFound):
        await runs.cancel("other", running.id)


async def test_stages_and_events_tell_the_story(runs: Runs):
    """Stages in the order of their beginning, begun again by a later attempt; events in pages from both ends."""
    await runs.add("default", Order(), "http")
    run = await runs.claim()
    assert run
    for name in ("export", "validate"):
        await runs.begin(run, name, f"datasets/{name}-1", "1")
    await runs.end(run, "export", counts={"lines": 2}, dropped={"why": 1}, facts={}, reused=False)
    told = await runs.stages(run.id)
    assert [(stage.name, stage.counts, stage.reused) for stage in told] == [
        ("export", {"lines": 2}, False), ("validate", None, None),
    ]  # fmt: skip
    for number in range(5):
        await runs.note(run, f"event {number}", data={"number": number})
    page = await runs.events(run.id, limit=2)
    assert [event.text for event in page] == ["event 4", "event 3"]
    assert [e.text for e in await runs.events(run.id, before=page[-1].id)] == ["event 2", "event 1", "event 0"]
    assert [e.data["number"] for e in await runs.events_since(run.id, page[-1].id)] == [4]


async def test_lists_are_the_tenants_own_in_pages(runs: Runs):
    """The latest first."""
    ids = [(await runs.add("default", Order(), "openai")).id for _ in range(3)]
    await runs.add("other", Order(), "openai")
    first = await runs.list("default", limit=2)
    assert [run.id for run in first] == [ids[2], ids[1]]
    assert [run.id for run in await runs.list("default", after=first[-1].id)] == [ids[0]]
    with pytest.raises(NotFound):
        await runs.list("default", after="ftjob-none")


class Processes:
    """A launcher of which a test says how its processes are."""

    def __init__(self) -> None:
        self.started: list[Run] = []
        self.stopped: list[Run] = []
        self.how: Alive = "alive"
        self.refuses = False

    async def start(self, run: Run) -> None:
        if self.refuses:
            raise Unavailable("job server", "it is not there")
        self.started.append(run)

    async def state(self, run: Run) -> Alive:
        return self.how

    async def ending(self, run: Run) -> str:
        return "killed by signal 9"

    async def stop(self, run: Run) -> None:
        self.stopped.append(run)


async def test_the_queue_begins_a_run_anew_when_its_process_is_gone(runs: Runs):
    """And leaves one alone that lives, however silent; what kills its processes fails in the end."""
    await runs.add("default", Order(), "http")
    processes = Processes()
    queue = Queue(runs, processes, live_s=0.0)
    assert await queue.once()
    assert await queue.once()
    assert len(processes.started) == 1
    processes.how = "gone"
    while await queue.once():
        pass
    assert [run.attempt for run in processes.started] == [*range(1, MOST_ATTEMPTS + 1)]
    run = (await runs.list("default"))[0]
    assert (run.state, run.error_code) == ("failed", "killed")
    assert (await runs.events(run.id))[0].text == "The process that worked on it is gone: killed by signal 9"


async def test_a_run_that_cannot_be_started_waits_and_is_none_the_worse(runs: Runs):
    """However often: it keeps its place, says why once, and has all its attempts left when it can be."""
    run = await runs.add("default", Order(), "http")
    await runs.add("default", Order(), "http")
    processes = Processes()
    queue = Queue(runs, processes)
    processes.refuses = True
    for _ in range(MOST_ATTEMPTS + 1):
        with pytest.raises(Unavailable):
            await queue.once()
    waiting = await runs.get(None, run.id)
    assert (waiting.state, waiting.begun, waiting.started_at) == ("queued", 0, None)
    [event] = await runs.events(run.id)
    assert "It cannot be started yet: The job server is not available" in event.text
    processes.refuses, processes.how = False, "gone"
    for _ in range(MOST_ATTEMPTS):
        assert await queue.once()
    assert [(started.id, started.begun) for started in processes.started] == [
        (run.id, begun) for begun in range(1, MOST_ATTEMPTS + 1)
    ]


async def test_the_queue_ends_a_cancelled_run_whose_process_is_gone_or_deaf(runs: Runs):
    """One that lives but does not listen is killed."""
    run = await runs.add("default", Order(), "http")
    processes = Processes()
    queue = Queue(runs, processes, live_s=0.0)
    await queue.once()
    await runs.cancel("default", run.id)
    await queue.once()
    assert [stopped.id for stopped in processes.stopped] == [run.id]
    processes.how = "gone"
    await queue.once()
    assert (await runs.get(None, run.id)).state == "cancelled"


def turn(text: str = "Hello") -> Turn:
    return Turn(
        id=str(uuid4()),
        tenant="default",
        request_id=str(uuid4()),
        messages=(Message(role="user", content=text),),
        answer=Message(role="assistant", content="Hi."),
        model="m",
        latency_s=0.1,
        finish_reason="stop",
        status="complete",
        created_at=datetime.now(UTC),
    )


async def test_taught_turns_are_counted_since_the_last_run(runs: Runs, pool: asyncpg.Pool):
    """Rated or corrected ones, each once; comments alone teach nothing."""
    store, feedback = Conversations(pool), FeedbackStore(pool)
    kept = [turn(str(number)) for number in range(3)]
    for one in kept:
        await store.record(one)
    await feedback.give(kept[0].id, "", Opinion(rating=1.0))
    await feedback.give(kept[0].id, "ann", Opinion(rating=-1.0))
    await feedback.give(kept[1].id, "", Opinion(comment="well"))
    assert await runs.taught(["default"]) == 1
    assert await runs.taught(["other"]) == 0
    await runs.add("default", Order(), "http")
    assert await runs.taught(["default"]) == 0
