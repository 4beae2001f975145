"""Rate limits of keys, counted in PostgreSQL, so that they hold over all gateways together.

Windows are calendar minutes. The tables are unlogged: a crash of PostgreSQL empties them, and every key has this
minute's limit anew. While PostgreSQL is away nothing is limited, because answers matter more than their price; a
gateway that dies leaves its requests counted as running until their time is over.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg

from app.errors import RateLimited, Unavailable
from app.keys import Key, Limits
from app.postgres import reaching_postgres
from app.queries import queries

SQL = queries("keys.sql")
log = logging.getLogger(__name__)


class Standing(NamedTuple):
    """What a key did in this minute, and what runs. reset_s: until the next one.

    counted: the request at hand is among them; else it would have gone over a limit.
    """

    requests: int
    tokens: int
    streams: int
    reset_s: float
    counted: bool


class Limiter:
    """Counts what keys do. lease_s: how long a request may run at most."""

    def __init__(self, pool: asyncpg.Pool, lease_s: float) -> None:
        self._pool, self._lease_s = pool, lease_s

    @asynccontextmanager
    async def held(self, key: Key, request_id: str) -> AsyncIterator[Standing | None]:
        """Count a request for as long as the block runs. Raises RateLimited before. None: nothing could be counted."""
        try:
            standing = await self._enter(key, request_id)
        except Unavailable as error:
            log.warning("Requests of key %s are not limited. %s", key.id, error)
            yield None
            return
        if not standing.counted:
            raise _refusal(key.limits, standing)
        try:
            yield standing
        finally:
            await self._quietly(SQL["leave"], request_id)

    async def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens of an answer."""
        if key.limits.tokens_per_minute is not None and tokens:
            await self._quietly(SQL["charge"], key.id, tokens)

    async def _enter(self, key: Key, request_id: str) -> Standing:
        limits = (key.limits.requests_per_minute, key.limits.tokens_per_minute, key.limits.streams)
        with reaching_postgres():
            row = await self._pool.fetchrow(SQL["enter"], key.id, request_id, self._lease_s, *limits)
        return Standing(**dict(row))

    async def _quietly(self, statement: str, *arguments: object) -> None:
        try:
            with reaching_postgres():
                await self._pool.execute(statement, *arguments)
        except Unavailable as error:
            log.warning("A limit was not counted. %s", error)


def _refusal(limits: Limits, standing: Standing) -> RateLimited:
    """Of the first limit that is reached."""
    reached = (
        RateLimited(what, limit, used, wait_s)
        for what, limit, used, wait_s in (
            ("requests per minute", limits.requests_per_minute, standing.requests, standing.reset_s),
            ("tokens per minute", limits.tokens_per_minute, standing.tokens, standing.reset_s),
            ("requests at the same time", limits.streams, standing.streams, 1.0),
        )
        if limit is not None and used >= limit
    )
    refusal = next(reached)
    refusal.standing = standing
    return refusal
