"""For commands that work on the database, whether or not a server runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from app.postgres import open_pool
from app.settings import Secrets, home

Result = TypeVar("Result")


def with_database(work: Callable[[asyncpg.Pool], Awaitable[Result]]) -> Result:
    """What the work returns, done with a pool of the configured database. Raises Unavailable, Misconfigured."""

    async def go() -> Result:
        url = Secrets.from_env().postgres_url
        pool = await open_pool(url.get_secret_value() if url else None, home())
        try:
            return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(go())
