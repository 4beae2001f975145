"""The store of responses: turns of the conversations that were asked for with the Responses API, found by their ids.

A response is the turn of a request; what its object repeats of the request is kept in the turn's extras under
`response`. A turn without that cannot be asked for by id: it came in another dialect, or with `store: false`, or was
deleted. Every method raises Unavailable while PostgreSQL is away.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.conversations import SQL as CONVERSATIONS
from app.conversations import asked
from app.errors import NotFound
from app.messages import Message
from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries
from app.turn_rows import recorded_turn
from app.turns import RecordedTurn

SQL = queries("responses.sql")
INSTRUCTED = "instructed"  # of the extras: the first message of the turn is its `instructions`


class Stored(NamedTuple):
    """A turn that a request can go on from. messages: all that the model was asked, the passages excluded."""

    conversation_id: str
    turn: RecordedTurn
    messages: tuple[Message, ...]

    @property
    def history(self) -> tuple[Message, ...]:
        """What is behind a request that goes on from here. Instructions are not: they are for one request."""
        answer = self.turn.answer
        return (*self.spoken, answer) if answer.content or answer.tool_calls else self.spoken

    @property
    def spoken(self) -> tuple[Message, ...]:
        """The messages without the instructions."""
        return self.messages[1:] if self.turn.extras.get(INSTRUCTED) else self.messages


class Responses:
    """Reads and deletes the responses of one database. request_id: of the request, which a response's id tells."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def find(self, tenant: str, request_id: str) -> Stored | None:
        """The response to a request. None: the tenant has no such response."""
        async with self._transaction() as connection:
            row = await connection.fetchrow(SQL["of_request"], hide(tenant), hide(request_id))
            return None if row is None else await _stored(connection, tenant, row)

    async def latest(self, tenant: str, conversation_id: str) -> Stored:
        """The last turn of a conversation, in any dialect. Raises NotFound."""
        try:
            wanted = UUID(conversation_id)
        except ValueError:
            raise NotFound("conversation", conversation_id) from None
        async with self._transaction() as connection:
            row = await connection.fetchrow(SQL["latest"], wanted, hide(tenant))
            if row is None:
                raise NotFound("conversation", conversation_id)
            return await _stored(connection, tenant, row)

    async def delete(self, tenant: str, request_id: str) -> bool:
        """Forget a response. False: the tenant has no such response.

        Its turn goes when nothing goes on from it: until then it is the history of others, and only not found by its
        id. So deleting the responses of a conversation, in any order, leaves nothing of it.
        """
        async with self._transaction(isolation="read_committed") as connection:
            await connection.execute(CONVERSATIONS["lock_texts"])
            turn = await connection.fetchval(SQL["hide"], hide(tenant), hide(request_id))
            if turn is None:
                return False
            while turn is not None:
                await connection.execute(SQL["hold"], turn)
                texts = [row["sha256"] for row in await connection.fetch(SQL["texts_of_turn"], turn)]
                gone = await connection.fetchrow(SQL["remove"], turn)
                if gone is None:
                    break
                await connection.execute(CONVERSATIONS["sweep_texts"], texts)
                await connection.execute(SQL["close"], gone["conversation_id"])
                turn = gone["parent_id"]
        return True

    @asynccontextmanager
    async def _transaction(self, isolation: str = "repeatable_read") -> AsyncIterator[asyncpg.Connection]:
        with reaching_postgres():
            async with self.pool.acquire() as connection, connection.transaction(isolation=isolation):
                yield connection


async def _stored(connection: asyncpg.Connection, tenant: str, row: asyncpg.Record) -> Stored:
    messages, _ = await asked(connection, tenant, row["id"])
    return Stored(str(row["conversation_id"]), recorded_turn(row), messages)
