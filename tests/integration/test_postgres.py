"""The embedded PostgreSQL: who starts it, who keeps it running, and when it stops."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from app.errors import Misconfigured, Unavailable
from app.migrator import Migration, migrate, shipped
from app.postgres import open_pool, reaching_postgres
from app.postgres_home import PostgresHome

pytestmark = pytest.mark.integration

USER_SCRIPT = """
import asyncio, sys
from pathlib import Path
from app.postgres import open_pool

async def main():
    pool = await open_pool(None, Path(sys.argv[1]))
    print(await pool.fetchval("select count(*) from migrations"), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def until(condition: Callable[[], object]) -> None:
    """Wait for something in another process."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 – another process's deed is no event of our loop
            await asyncio.sleep(0.01)


def supervisor(home: PostgresHome) -> int:
    """The process id of the supervisor, as its last line in the log tells."""
    lines = [line for line in home.log.read_text().splitlines() if line.startswith("supervisor [")]
    return int(lines[-1].split("[")[1].split("]")[0])


def copied(home: Path, to: Path) -> Path:
    """A copy of a home whose server does not run. Sockets cannot be copied."""
    shutil.copytree(home, to, ignore=shutil.ignore_patterns("run"))
    return to


@pytest.fixture(scope="session")
def stopped_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose data were made, and whose server has stopped."""

    async def make(home: Path) -> Path:
        await (await open_pool(None, home)).close()
        await until(lambda: PostgresHome(home).postmaster() is None)
        return home

    return asyncio.run(make(tmp_path_factory.mktemp("stopped")))


@pytest.fixture
def home(stopped_home: Path, tmp_path: Path) -> Path:
    """A home of the test's own, without the wait for a first start."""
    return copied(stopped_home, tmp_path / 'a, "é" b')


async def start_user(home: Path) -> asyncio.subprocess.Process:
    """Another process with a pool, which has made its first query."""
    script = (sys.executable, "-c", USER_SCRIPT, str(home))
    user = await asyncio.create_subprocess_exec(*script, stdout=subprocess.PIPE)
    assert user.stdout is not None
    assert int(await user.stdout.readline()) == len(shipped())
    return user


async def test_the_server_runs_while_anybody_uses_it_and_stops_cleanly_after_the_last(home: Path) -> None:
    """Four processes start together and are killed, a fifth comes meanwhile: one server, until that one has left."""
    server = PostgresHome(home)
    server.log.unlink()
    users = await asyncio.gather(*(start_user(home) for _ in range(4)))
    pool = await open_pool(None, home)
    process = server.postmaster()
    for user in users:
        user.kill()
        await user.wait()
    assert await pool.fetchval("select 1") == 1
    assert server.postmaster() == process
    await pool.close()
    await until(lambda: "database system is shut down" in server.log.read_text())
    assert server.log.read_text().count("ready to accept connections") == 1


async def test_data_survive_a_restart_and_a_move_by_root(home: Path, tmp_path: Path) -> None:
    """What was written before the last user left is there in a copy of the home, whoever owns the copied files."""
    original = await open_pool(None, home)
    await original.execute("create table kept as select 'é🎈' as text")
    await original.close()
    await until(lambda: PostgresHome(home).postmaster() is None)
    copy = await open_pool(None, copied(home, tmp_path / "copy"))
    assert await copy.fetchval("select text from kept") == "é🎈"
    await copy.close()


async def test_a_connection_is_returned_without_its_locks_unless_it_says_that_it_took_none(home: Path) -> None:
    """The next user gets it like new: what is left behind is undone, and who leaves nothing saves the round trip."""
    pool = await open_pool(None, home)
    locks = "select count(*) from pg_locks where locktype = 'advisory'"
    async with pool.acquire() as connection:
        connection.leaves_nothing()
        await connection.execute("select pg_advisory_lock(1)")  # which is not true
    assert await pool.fetchval(locks) == 1
    async with pool.acquire() as connection:  # the same one, and it says nothing
        await connection.execute("select 1")
    assert await pool.fetchval(locks) == 0
    await pool.close()


async def test_a_killed_server_is_started_again_and_its_users_reconnect(
    pool: asyncpg.Pool, postgres_home: Path
) -> None:
    """After kill -9 the same pool answers again, a committed row is there, and the wait is an Unavailable."""
    await pool.execute("create table survivors as select 1 as number")
    killed = PostgresHome(postgres_home).postmaster()
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await until(lambda: PostgresHome(postgres_home).postmaster() not in (killed, None))
    async with asyncio.timeout(20):
        while True:
            try:
                with reaching_postgres():
                    assert await pool.fetchval("select number from survivors") == 1
                    break
            except Unavailable:
                await asyncio.sleep(0.05)


async def test_the_successor_of_a_killed_supervisor_adopts_the_running_server(home: Path) -> None:
    """The server keeps its process and its connections, and still stops when the last user has left."""
    server, pool = PostgresHome(home), await open_pool(None, home)
    adopted, killed = server.postmaster(), supervisor(server)
    os.kill(killed, signal.SIGKILL)
    await until(lambda: supervisor(server) != killed)
    assert await pool.fetchval("select 1") == 1
    assert server.postmaster() == adopted
    await pool.close()
    await until(lambda: server.postmaster() is None)


async def test_a_pool_without_its_server_is_there_when_the_server_is(stopped_home: Path, tmp_path: Path) -> None:
    """`open_pool` returns although nobody listens; statements raise Unavailable, until one gets through."""
    home = copied(stopped_home, tmp_path / "home")  # a URL has no way to write the comma of `home`
    by_url = await open_pool(f"postgresql://postgres@/postgres?host={PostgresHome(home).run}", home)
    with pytest.raises(Unavailable), reaching_postgres():
        await by_url.fetchval("select 1")
    embedded = await open_pool(None, home)
    assert await by_url.fetchval("select count(*) from turns") == 0
    await by_url.close()
    await embedded.close()


async def test_a_pid_file_whose_number_a_stranger_has_now_does_not_keep_the_server_from_starting(home: Path) -> None:
    """After a container's restart the old server's number may be anybody's: here it is this test's own process."""
    PostgresHome(home).pid_file.write_text(f"{os.getpid()}\n{PostgresHome(home).data}\n1\n5432\n\n\n1 1\nready\n")
    assert PostgresHome(home).postmaster() is None
    pool = await open_pool(None, home)
    assert await pool.fetchval("select 1") == 1
    await pool.close()


async def test_a_home_with_a_long_path_gets_its_sockets_elsewhere(home: Path, tmp_path: Path) -> None:
    """A socket's path may have some 100 bytes; a deeper home works all the same."""
    deep = copied(home, tmp_path / ("a" * 60) / ("b" * 60))
    pool = await open_pool(None, deep)
    assert await pool.fetchval("select 1") == 1
    await pool.close()
    await until(lambda: PostgresHome(deep).postmaster() is None)
    shutil.rmtree(PostgresHome(deep).run)


async def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Nobody slips us a server of their own by making the folder in /tmp first."""
    deep = tmp_path / ("c" * 60) / ("d" * 60)
    PostgresHome(deep).run.mkdir(mode=0o755)
    with pytest.raises(Misconfigured, match="not a private folder"):
        await open_pool(None, deep)
    PostgresHome(deep).run.rmdir()


async def test_a_server_that_cannot_start_is_an_unavailable_with_the_reason(tmp_path: Path) -> None:
    """The reason is PostgreSQL's own last word, and the log is named."""
    home = PostgresHome(tmp_path)
    home.data.mkdir(parents=True)
    (home.data / "PG_VERSION").write_text("18\n")
    pool = await open_pool(None, tmp_path)
    with pytest.raises(Unavailable, match=r"postgresql\.conf.*postgres/log"):
        await pool.fetchval("select 1")
    await pool.close()


async def test_data_of_another_major_version_are_refused(tmp_path: Path) -> None:
    """Start-up says which version made the data; it does not touch them."""
    home = PostgresHome(tmp_path)
    home.data.mkdir(parents=True)
    (home.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(Misconfigured, match="PostgreSQL 16, this is 18"):
        await open_pool(None, tmp_path)


async def test_migrations_are_applied_once_by_whoever_comes_first(pool: asyncpg.Pool) -> None:
    """Eight connections migrate together: the file runs once, the others find it done."""
    migrations = (*shipped(), Migration(9001, "9001_once.sql", "create table applied_once (number int)"))

    async def one() -> None:
        async with pool.acquire() as connection:
            await migrate(connection, migrations)

    await asyncio.gather(*(one() for _ in range(8)))
    assert await pool.fetchval("select count(*) from migrations where number = 9001") == 1
    await pool.execute("drop table applied_once; delete from migrations where number > 9000")


async def test_a_changed_migration_is_refused_and_nothing_is_applied(pool: asyncpg.Pool) -> None:
    """The new file beside the tampered one is not applied either."""
    first, *rest = shipped()
    tampered = (
        first._replace(sql=first.sql + "-- harmless"),
        *rest,
        Migration(9002, "9002_new.sql", "create table t ()"),
    )
    async with pool.acquire() as connection:
        with pytest.raises(Misconfigured, match="was changed after"):
            await migrate(connection, tampered)
    assert await pool.fetchval("select count(*) from migrations where number > 9000") == 0


async def test_two_migrations_of_one_number_are_refused(pool: asyncpg.Pool) -> None:
    """Two people who took the same number are told so, instead of one file being skipped."""
    twins = (Migration(9003, "9003_a.sql", "select 1"), Migration(9003, "9003_b.sql", "select 1"))
    async with pool.acquire() as connection:
        with pytest.raises(Misconfigured, match="has the number of 9003_a"):
            await migrate(connection, twins)


async def test_no_release_runs_backwards(pool: asyncpg.Pool) -> None:
    """A release before a migration goes on working, unless that migration says which one is the oldest that does."""
    number = max(migration.number for migration in shipped())
    kind = Migration(number + 1, "9001_kind.sql", "create table kind (id int)")
    hard = Migration(number + 2, "9002_hard.sql", f"-- Drops it.\n-- oldest: {number + 1}\ndrop table kind")
    async with pool.acquire() as connection:
        try:
            await migrate(connection, (*shipped(), kind))
            await migrate(connection)  # the release before
            await migrate(connection, (*shipped(), kind, hard))
            await migrate(connection, (*shipped(), kind))  # the oldest that works
            with pytest.raises(Misconfigured, match=f"needs a release with migration {number + 1:04} or newer"):
                await migrate(connection)
        finally:
            await connection.execute("delete from migrations where number > $1", number)


async def test_a_database_of_before_learns_to_say_which_releases_are_too_old(pool: asyncpg.Pool) -> None:
    """Its table of migrations gets the column that it lacks, once."""
    async with pool.acquire() as connection:
        await connection.execute("alter table migrations drop column oldest")
        for _ in range(2):
            await migrate(connection)
        assert await connection.fetchval("select max(oldest) from migrations") == 0
