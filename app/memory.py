"""Memory: what was said in conversations, found again beside documents. The store that knows what is remembered.

A turn is a document of the collection `conversations`: what was asked, and the answer (as it should have been, where
somebody corrected it). PostgreSQL is the truth. It queues the turns to make findable, through triggers, so that nothing
which records a turn knows of memory; and whatever the vector store finds is told only where PostgreSQL has the turn for
this tenant, so that what was deleted is gone in the same moment, and its vectors a little later.

    async with memory.working() as work:            # one worker at a time; None: somebody else is it
        for due in await work.unremembered(16): …   # deployments/remembering.py
    passages = await memory.told(tenant, found)     # deployments/recall.py

Not remembered: turns without an answer in words, and those rated down.
Every method raises Unavailable while PostgreSQL is away.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from app.errors import InvalidRequest
from app.messages import Message, Passage
from app.nul import hide, show
from app.postgres import reaching_postgres
from app.queries import queries
from app.turn_rows import ANSWER, MESSAGES, feedback, load

COLLECTION = "conversations"
SIDE_CHARS = 8000  # of what was asked, and of the answer: what stands behind is not found again
LOCK = 7_266_883_108  # any number, ours alone
SQL = queries("memory.sql")


class Due(NamedTuple):
    """A turn that is to be remembered. asked_at: tells whether it was asked for anew meanwhile."""

    turn_id: UUID
    asked_at: datetime


class Gone(NamedTuple):
    """A turn that was deleted."""

    turn_id: UUID
    tenant: str
    created_at: datetime


class Exchange(NamedTuple):
    """What is there of a turn. text: "" where nothing is worth remembering; chunks: what is remembered already."""

    tenant: str
    created_at: datetime
    title: str
    text: str
    chunks: int


def require_open(collection: str) -> None:
    """Raise InvalidRequest for a collection that nobody may put documents into."""
    if collection == COLLECTION or collection.startswith("vs_"):
        owner = "the memory of conversations" if collection == COLLECTION else "a vector store"
        raise InvalidRequest(f"The collection '{collection[:80]}' belongs to {owner}; take another name.", "collection")


def memory_id(turn_id: UUID, created_at: datetime) -> str:
    """The turn as a document: mem_, its time in milliseconds, its id. Later turns have greater ids."""
    return f"mem_{int(created_at.timestamp() * 1000):012x}{turn_id.hex}"


def turn_of(document_id: str) -> UUID | None:
    """The turn that a document of the collection is."""
    try:
        return UUID(document_id[-32:]) if document_id.startswith("mem_") else None
    except ValueError:
        return None


class Memory:
    """What is remembered in one database. Closing the pool is its owner's."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def of_conversation(self, tenant: str, conversation_id: str) -> tuple[str, ...]:
        """A conversation's turns, as documents."""
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["of_conversation"], UUID(conversation_id), hide(tenant))
        return tuple(memory_id(row["id"], row["created_at"]) for row in rows)

    async def told(self, tenant: str, found: Sequence[Passage]) -> tuple[Passage, ...]:
        """Those passages that may be told, in their order: turns of this tenant that exist, and other collections'."""
        turns = {passage.document_id: turn_of(passage.document_id) for passage in found if _is_memory(passage)}
        rows: dict[UUID, asyncpg.Record] = {}
        if turns:
            with reaching_postgres():
                ids = [turn for turn in turns.values() if turn]
                rows = {row["id"]: row for row in await self._pool.fetch(SQL["told"], ids, hide(tenant))}
        told = []
        for passage in found:
            turn = turns.get(passage.document_id) if _is_memory(passage) else None
            if turn in rows:
                told.append(_placed(passage, rows[turn]))
            elif not _is_memory(passage):
                told.append(passage)
        return tuple(told)

    async def again(self, tenant: str | None = None) -> int:
        """Remember every turn anew, of one tenant or of all. Returns how many."""
        with reaching_postgres():
            status: str = await self._pool.execute(SQL["again"], None if tenant is None else hide(tenant))
        return int(status.rpartition(" ")[2])

    @asynccontextmanager
    async def working(self) -> AsyncIterator["Work | None"]:
        """The right to do what is queued, on a connection of its own: if that is lost, so is the right."""
        with reaching_postgres():
            connection = await self._pool.acquire()
        try:
            with reaching_postgres():
                free = await connection.fetchval(SQL["try_lock"], LOCK)
            yield Work(connection) if free else None
        finally:
            with reaching_postgres():
                await self._pool.release(connection)  # which unlocks


class Work:
    """The queues, for the one who works on them."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def unremembered(self, limit: int) -> tuple[Due, ...]:
        """The latest turns that are to be made findable."""
        with reaching_postgres():
            return tuple(Due(*row) for row in await self._connection.fetch(SQL["unremembered"], limit))

    async def exchange(self, turn_id: UUID) -> Exchange | None:
        """What there is to remember of a turn. None: it is gone."""
        with reaching_postgres():
            row = await self._connection.fetchrow(SQL["turn"], turn_id)
            if row is None:
                return None
            said = [feedback(judged) for judged in await self._connection.fetch(SQL["judged"], turn_id)]
            asked = await self._connection.fetchval(SQL["asked_before"], turn_id)
        correction = next((one.correction for one in reversed(said) if one.correction is not None), None)
        rated_down = sum(one.rating or 0 for one in said) < 0 and correction is None
        answer = correction or load(ANSWER, row["answer"])
        before = load(MESSAGES, asked or "[]")
        text = "" if rated_down else exchanged(before, answer)
        return Exchange(show(row["tenant"]), row["created_at"], show(row["title"]), text, row["chunks"])

    async def remembered(self, due: Due, chunks: int) -> bool:
        """The vector store holds so many chunks of a turn. False: the turn is gone, and they must go, too."""
        with reaching_postgres():
            try:
                async with self._connection.transaction():
                    await self._connection.execute(SQL["remembered"], due.turn_id, chunks)
                    await self._connection.execute(SQL["done"], *due)
            except asyncpg.ForeignKeyViolationError:
                return False
        return True

    async def failed(self, turn_id: UUID) -> None:
        """Try it again later."""
        with reaching_postgres():
            await self._connection.execute(SQL["failed"], turn_id)

    async def forgotten(self, limit: int) -> tuple[Gone, ...]:
        """Turns that are gone, and of which chunks may be left."""
        with reaching_postgres():
            rows = await self._connection.fetch(SQL["forgotten"], limit)
        return tuple(Gone(row["turn_id"], show(row["tenant"]), row["created_at"]) for row in rows)

    async def cleared(self, gone: Sequence[Gone]) -> None:
        """Nothing is left of them."""
        with reaching_postgres():
            await self._connection.execute(SQL["cleared"], [turn.turn_id for turn in gone])


def exchanged(asked: Sequence[Message], answer: Message) -> str:
    """What is remembered of a turn: the users' words and the answer's. "" where there is no answer in words."""
    if not answer.content.strip():
        return ""
    question = "\n".join(message.content.strip() for message in asked if message.role == "user")
    sides = [f"User: {question[:SIDE_CHARS]}"] if question.strip() else []
    return "\n\n".join([*sides, f"Assistant: {answer.content.strip()[:SIDE_CHARS]}"])


def _is_memory(passage: Passage) -> bool:
    return passage.collection == COLLECTION


def _placed(passage: Passage, turn: asyncpg.Record) -> Passage:
    """A passage as it is cited: when it was said, and in which conversation."""
    title = f"Conversation of {turn['created_at'].astimezone(UTC):%Y-%m-%d}: {show(turn['title'])}"
    return passage.model_copy(update={"title": title, "conversation_id": str(turn["conversation_id"])})
