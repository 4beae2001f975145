"""Fixtures that several test modules share: real stores, each started once."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from app.postgres import open_pool


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose embedded PostgreSQL runs while a test uses its pool, and stops by itself after the last one."""
    return tmp_path_factory.mktemp("home")


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
