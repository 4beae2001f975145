"""No turn is lost and none is doubled, whatever happens to PostgreSQL. On a real one, which is killed and stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.conversations import Turn
from app.messages import Message
from app.postgres_home import PostgresHome
from app.recorder import Recorder
from app.spool import Spool

pytestmark = pytest.mark.integration

REPLAY_SCRIPT = """
import asyncio, sys
from pathlib import Path
from app.recorder import Recorder

async def main():
    async with Recorder.open(sys.argv[1], Path(sys.argv[2])) as recorder:
        while recorder.pending():
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def turn(*messages: Message, answer: str = "Yes.", **fields: Any) -> Turn:
    facts = {"request_id": str(uuid4()), "model": "demo", "latency_s": 0.5, "status": "complete"}
    facts |= {"created_at": datetime.now(UTC)}
    return Turn(messages=messages, answer=assistant(answer), **(facts | fields))


def a_chat(turns: int) -> list[Turn]:
    """The turns of one conversation, each request holding all that was said before."""
    said: list[Message] = []
    made = []
    for number in range(turns):
        made.append(turn(*said, user(f"q{number}"), answer=f"a{number}"))
        said += [user(f"q{number}"), assistant(f"a{number}")]
    return made


@pytest.fixture
def url(postgres_home: Path) -> str:
    """The shared database as a server by URL: for the recorder it is as far away as any."""
    return f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}"


@pytest.fixture
async def recorder(url: str, pool: asyncpg.Pool, tmp_path: Path) -> AsyncIterator[Recorder]:
    async with Recorder.open(url, tmp_path) as recorder:
        yield recorder


@contextmanager
def postgres_away(home: Path) -> Iterator[None]:
    """Stop the server, and keep its supervisor from starting it again until the end of the block."""
    server = PostgresHome(home)
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("supervisor [")]
    supervisor, postmaster = int(lines[-1].split("[")[1].split("]")[0]), server.postmaster()
    assert postmaster is not None
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(postmaster, signal.SIGINT)
        deadline = time.monotonic() + 20
        while server.postmaster() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def processes_of(home: PostgresHome) -> list[int]:
    """The server's process and its children."""
    server = home.postmaster()
    assert server is not None
    return [server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())]


async def replayed(recorder: Recorder) -> None:
    """Wait until the spool is empty."""
    async with asyncio.timeout(20):
        while recorder.pending():  # noqa: ASYNC110 – the recorder tells nobody when it is done
            await asyncio.sleep(0.01)


async def recorded_requests(pool: asyncpg.Pool) -> list[str]:
    return [row["request_id"] for row in await pool.fetch("select request_id from turns order by number")]


async def test_killing_postgres_under_load_loses_no_turn_and_doubles_none(
    recorder: Recorder, pool: asyncpg.Pool, postgres_home: Path
) -> None:
    """Eight writers in the middle of their conversations, kill -9, twice; every record() that returned counts."""
    finished: list[str] = []
    spooled: list[str] = []

    async def write() -> None:
        for one in a_chat(12):
            kept = await recorder.record(one)
            finished.append(one.request_id)
            if kept.conversation_id is None:
                spooled.append(one.request_id)
            if len(finished) % 96 == 40:
                server = PostgresHome(postgres_home).postmaster()
                assert server is not None
                os.kill(server, signal.SIGKILL)

    for _ in range(2):
        await asyncio.gather(*(write() for _ in range(8)))
        assert spooled
        spooled.clear()
        await replayed(recorder)
    assert sorted(await recorded_requests(pool)) == sorted(finished)
    assert len(finished) == 2 * 8 * 12
    assert await pool.fetchval("select count(*) from turns where parent_id is null") == 2 * 8


async def test_turns_spool_while_postgres_is_away_and_are_replayed_in_order(
    recorder: Recorder, pool: asyncpg.Pool, postgres_home: Path
) -> None:
    """A conversation that began before continues on disk, and is one conversation again, each turn on its parent."""
    turns = a_chat(6)
    first = await recorder.record(turns[0])
    with postgres_away(postgres_home):
        for one in turns[1:]:
            assert (await recorder.record(one)).conversation_id is None
        assert recorder.pending() == 5
        assert await recorder.locate("default", turns[3].messages) is None
        assert await recorder.state() != "ok"
    await replayed(recorder)
    kept = (await recorder.conversations.get("default", str(first.conversation_id))).turns
    assert [one.request_id for one in kept] == [one.request_id for one in turns]
    assert [one.parent_id for one in kept] == [None, *(one.id for one in kept[:-1])]
    assert await recorder.state() == "ok"


async def test_a_recorder_starts_without_postgres(
    url: str, pool: asyncpg.Pool, postgres_home: Path, tmp_path: Path
) -> None:
    """The gateway answers from its first second; what it spooled is recorded when the server comes."""
    with postgres_away(postgres_home):
        context = Recorder.open(url, tmp_path)
        recorder = await context.__aenter__()
        await recorder.record(turn(user("a")))
        assert recorder.pending() == 1
    await replayed(recorder)
    assert len(await recorded_requests(pool)) == 1
    await context.__aexit__(None, None, None)


async def test_a_frozen_server_delays_a_turn_for_seconds_only(
    recorder: Recorder, pool: asyncpg.Pool, postgres_home: Path
) -> None:
    """Nothing is closed or refused, nothing answers: the turn is on disk within 20 s; thawed, it is recorded once."""
    await recorder.record(turn(user("warm")))
    frozen = processes_of(PostgresHome(postgres_home))
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            assert (await recorder.record(turn(user("a")))).conversation_id is None
    finally:
        for process in frozen:
            os.kill(process, signal.SIGCONT)
    await replayed(recorder)
    assert len(await recorded_requests(pool)) == 2


async def test_a_turn_joins_the_spool_as_long_as_anything_waits(url: str, pool: asyncpg.Pool, tmp_path: Path) -> None:
    """Although PostgreSQL is there: a continuation must not overtake the parent that another process has spooled."""
    parent, child = a_chat(2)
    spool = Spool(tmp_path / "spool")
    with spool.replaying() as alone:  # nobody replays yet
        assert alone
        spool.add(parent)
        async with Recorder.open(url, tmp_path) as recorder:
            assert (await recorder.record(child)).conversation_id is None
            assert await recorded_requests(pool) == []
    async with Recorder.open(url, tmp_path) as recorder:
        await replayed(recorder)
    assert await recorded_requests(pool) == [parent.request_id, child.request_id]
    assert await pool.fetchval("select count(*) from conversations") == 1


async def test_two_processes_that_replay_at_once_record_every_turn_once_and_in_order(
    url: str, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    """Forty turns of one conversation, two processes that find them at their start."""
    turns = a_chat(40)
    for one in turns:
        Spool(tmp_path / "spool").add(one)
    script = (sys.executable, "-c", REPLAY_SCRIPT, url, str(tmp_path))
    processes = await asyncio.gather(*(asyncio.create_subprocess_exec(*script) for _ in range(2)))
    assert [await process.wait() for process in processes] == [0, 0]
    assert await recorded_requests(pool) == [one.request_id for one in turns]
    assert await pool.fetchval("select count(*) from conversations") == 1


async def test_a_turn_that_was_committed_before_it_was_spooled_is_not_doubled(
    recorder: Recorder, pool: asyncpg.Pool
) -> None:
    """The reply was lost, or the process died between commit and unlink."""
    one = turn(user("a"))
    await recorder.record(one)
    recorder.spool.add(one)
    await recorder.record(turn(user("b")))
    await replayed(recorder)
    assert len(await recorded_requests(pool)) == 2


async def test_a_turn_that_postgres_rejects_is_set_aside_and_blocks_nobody(
    recorder: Recorder, pool: asyncpg.Pool
) -> None:
    """Here a second turn under a used id: it is kept as a file for a person to see."""
    first = turn(user("a"))
    await recorder.record(first)
    await recorder.record(turn(user("b"), id=first.id))
    last = turn(user("c"))
    await recorder.record(last)
    await replayed(recorder)
    assert await recorded_requests(pool) == [first.request_id, last.request_id]
    assert len(list(recorder.spool.folder.glob("*.bad"))) == 1


async def test_a_caller_that_is_cancelled_does_not_lose_its_turn(recorder: Recorder, pool: asyncpg.Pool) -> None:
    """A client that leaves cancels its request, not the recording."""
    calling = asyncio.create_task(recorder.record(turn(user("a"))))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    async with asyncio.timeout(5):
        while not await recorded_requests(pool):  # noqa: ASYNC110 – nobody is left to tell
            await asyncio.sleep(0.01)
