"""Connections to PostgreSQL: a server by URL, or the embedded one of the home folder. One code path behind both.

    pool = await open_pool(secrets.postgres_url, home())    # with the schema up to date
    with reaching_postgres():                               # a server that is away raises Unavailable
        await pool.fetch(...)
    await pool.close()                                      # the embedded server stops after its last user

`open_pool` does not need the server: where it is away a warning is logged, the pool is returned all the same, and the
first connection that succeeds applies the migrations. So the gateway starts and answers without PostgreSQL.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from app.errors import Unavailable
from app.migrator import migrate
from app.postgres_attachment import Attachment
from app.postgres_home import PostgresHome

POOL_SIZE = 8  # connections of one process; opened on demand, closed when idle for five minutes
CONNECT_TIMEOUT_S = 5.0

# What asyncpg raises when a server is away, going, coming, full or read-only, and not when a statement is wrong.
AWAY: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # 53: disk, memory, connections
    asyncpg.OperatorInterventionError,  # 57: shutting down, starting up, crashed
    asyncpg.PostgresSystemError,  # 58: input and output
    asyncpg.ReadOnlySQLTransactionError,  # 25006: failed over to a standby
    asyncpg.InterfaceError,  # the connection or the pool was closed under us
    asyncpg.InternalClientError,  # the connection broke inside a statement ("cannot switch to state")
)

logger = logging.getLogger(__name__)


async def open_pool(url: str | None, home: Path) -> asyncpg.Pool:
    """A pool of connections. url: postgresql://…; None: the embedded server of `home`, started if it does not run.

    Close it with `await pool.close()`. Raises Misconfigured: the embedded server cannot run here, or the database has
    a migration that was changed since. A server that is away is no error, see above.
    """
    pool = Pool(url, None if url else PostgresHome(home))
    await pool
    try:
        with reaching_postgres():
            async with pool.acquire():
                return pool
    except Unavailable as error:
        logger.warning("%s Going on without it.", error)
        return pool
    except BaseException:
        pool.terminate()
        raise


@contextmanager
def reaching_postgres() -> Iterator[None]:
    """Turn the errors of a server that is away into Unavailable; those of a wrong statement pass."""
    try:
        yield
    except AWAY as error:
        raise Unavailable("database", str(error) or type(error).__name__) from error


@asynccontextmanager
async def transaction(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection on which all happens, or nothing. Raises Unavailable."""
    with reaching_postgres():
        async with pool.acquire() as connection, connection.transaction():
            yield connection


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """One of a pool, which its next user gets like new: without the locks, listeners and settings of this one."""

    _left_clean = False

    def leaves_nothing(self) -> None:
        """Say, until it is returned, that only statements and transactions run on it: then it needs no reset, which is
        a round trip.
        """
        self._left_clean = True

    def get_reset_query(self) -> str:
        """Called by the pool."""
        clean, self._left_clean = self._left_clean, False
        query: str = "" if clean else super().get_reset_query()
        return query


class Pool(asyncpg.Pool):  # type: ignore[misc]  # asyncpg has no types
    """A pool that migrates the schema on its first connection, and keeps the embedded server running until closed."""

    def __init__(self, url: str | None, embedded: PostgresHome | None) -> None:
        place: dict[str, Any] = {"dsn": url}
        if embedded is not None:
            place = {"host": str(embedded.run), "port": 5432, "user": "postgres", "database": "postgres"}
        super().__init__(
            connect=self._open_connection,
            min_size=0,
            max_size=POOL_SIZE,
            max_queries=50_000,
            max_inactive_connection_lifetime=300.0,
            loop=None,
            connection_class=Connection,
            record_class=asyncpg.Record,
            timeout=CONNECT_TIMEOUT_S,
            **place,
        )
        self._attachment = None if embedded is None else Attachment(embedded)
        self._migrating = asyncio.Lock()
        self._migrated = False

    async def close(self) -> None:
        """Return all connections, close them, and let the embedded server go."""
        await super().close()
        if self._attachment is not None:
            await self._attachment.leave()

    def terminate(self) -> None:
        """Close everything without waiting."""
        super().terminate()
        if self._attachment is not None:
            self._attachment.drop()

    async def _open_connection(self, **arguments: Any) -> asyncpg.Connection:
        if self._attachment is not None:
            await self._attachment.hold()
        connection = await asyncpg.connect(**arguments)
        try:
            await self._migrate_once(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _migrate_once(self, connection: asyncpg.Connection) -> None:
        async with self._migrating:
            if not self._migrated:
                await migrate(connection)
                self._migrated = True
