"""Fixtures that several test modules share: real stores, each started once.

What hypothesis draws is the same in every run. To search on, MINDFU_FUZZ=1 has it draw anew, and ten times as much,
but where a test says that it is always the same.
"""

import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import hypothesis
import pytest

from app.postgres import open_pool
from app.postgres_attachment import start_supervisor
from app.postgres_home import PostgresHome

os.environ.setdefault("RAY_AUTH_MODE", "token")  # which Ray reads once, when the first test module imports it
FUZZ = bool(os.environ.get("MINDFU_FUZZ"))
hypothesis.settings.register_profile("mindfu", deadline=None, derandomize=not FUZZ)  # a busy machine is no failure
hypothesis.settings.load_profile("mindfu")
USED = "_hypothesis_internal_use_settings"  # by a test; of hypothesis, which has no other way to change them


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose embedded PostgreSQL runs from the first test that asks for it to the last test of all."""
    home = tmp_path_factory.mktemp("home")
    start_supervisor(PostgresHome(home))
    with socket.socket(socket.AF_UNIX) as user:
        user.connect(str(PostgresHome(home).supervisor_socket))
        yield home
    deadline = time.monotonic() + 20
    while PostgresHome(home).postmaster() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture
async def pool(postgres_home: Path) -> AsyncIterator[asyncpg.Pool]:
    """A pool on the shared database, every table of ours empty."""
    pool = await open_pool(None, postgres_home)
    tables = await pool.fetch(
        "select tablename from pg_tables where schemaname = 'public' and tablename <> 'migrations'"
    )
    await pool.execute(f"truncate {', '.join(table['tablename'] for table in tables)} cascade")
    yield pool
    await pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`pytest -m unit` is tests/unit; MINDFU_FUZZ multiplies examples."""
    for item in items:
        if item.path.parent.name == "unit":
            item.add_marker("unit")
    for function in {getattr(item, "function", None) for item in items} if FUZZ else ():
        if (given := getattr(function, USED, None)) and not given.derandomize:
            setattr(function, USED, hypothesis.settings(given, max_examples=10 * given.max_examples))
