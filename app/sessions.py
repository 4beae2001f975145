"""The sessions of /chat: names for the conversations that clients go on with, without knowing their ids.

A session belongs to the key that it was opened with. What was said is nowhere but in the conversation's turns
(app/conversations.py), and the name goes with them. Methods raise Unavailable while PostgreSQL is away.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.messages import Message
from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries

SQL = queries("sessions.sql")
DEFAULT = "default"


class Session(NamedTuple):
    """Whose it is, and what they call it. key_id: None where no key came with the request."""

    tenant: str
    key_id: str | None
    name: str = DEFAULT


class Sessions:
    """The sessions of one database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def conversation(self, session: Session) -> str | None:
        """The id of the conversation that a session goes on with, maybe not recorded yet. None: it begins anew."""
        with reaching_postgres():
            found: UUID | None = await self.pool.fetchval(SQL["conversation"], *_row(session))
        return None if found is None else str(found)

    async def move(self, session: Session, conversation_id: str | None) -> None:
        """Let a session go on with another conversation; None: begin anew."""
        with reaching_postgres():
            await self.pool.execute(SQL["move"], *_row(session), conversation_id and UUID(conversation_id))


def is_whole(messages: Sequence[Message]) -> bool:
    """Whether messages are a conversation that the client keeps itself: they tell an answer."""
    return any(message.role == "assistant" for message in messages)


def answered(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A history up to its last answer: what got none is asked again by whoever still wants to know."""
    end = max((index for index, message in enumerate(messages, start=1) if message.role == "assistant"), default=0)
    return tuple(messages[:end])


def _row(session: Session) -> tuple[str, str, str]:
    return hide(session.tenant), session.key_id or "", hide(session.name)
