"""The store of conversations: forests of turns, each keeping only what it added.

A request whose messages extend a recorded turn continues that turn's conversation (app.history), scoped by tenant. So
clients that resend the whole history with every question make one conversation, and a regenerated or edited turn a
branch of it. A request without an assistant message always opens a conversation. A conversation that the client names
(`x-conversation-id`) wins: the turn hangs where its history fits, or becomes another root where it fits nowhere,
because the model saw nothing of what was there. An answer that is empty (a failure, mostly) is never continued; one
that was cut short is, by clients that send exactly that back.

What the model saw can be told to the letter (`prompt_of`): where a client resends an earlier message otherwise than we
know it (trimmed, other ids), the turn keeps that difference too.

Every method raises Unavailable while PostgreSQL is away. Ids are UUIDs; one that is malformed is not found.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg

from app.errors import NotFound
from app.history import Chains, anchors, chains_of, links, spoken
from app.messages import Message
from app.nul import hide, show
from app.postgres import reaching_postgres
from app.prompt import augment
from app.queries import queries
from app.truncation import without_first
from app.turn_rows import (
    MESSAGES,
    RESENT,
    columns,
    dropped,
    feedback,
    messages_json,
    passages,
    path_messages,
    recorded_turn,
    summary,
)
from app.turns import Conversation, ConversationSummary, Feedback, Turn, TurnStatus, Wanted

__all__ = ["Conversations", "Place", "Recorded", "Turn", "TurnStatus"]

SQL = queries("conversations.sql")
FEEDBACK = queries("feedback.sql")
TITLE_CHARS = 80


class Place(NamedTuple):
    """Where a request belongs. parent_turn_id None: it opens a tree, in a conversation that may be new."""

    conversation_id: str
    parent_turn_id: str | None
    new_messages: tuple[Message, ...]  # those that the parent does not know, system prompts excluded


class Recorded(NamedTuple):
    """Where a turn was kept. conversation_id None: in the spool, its conversation is found when it is replayed."""

    turn_id: str
    conversation_id: str | None


class Conversations:
    """Reads and writes the conversations of one database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def locate(
        self,
        tenant: str,
        messages: Sequence[Message],
        conversation_id: str | None = None,
        key_id: str | None = None,
    ) -> Place:
        """Find what a request continues. conversation_id: the client named it; None: search all of the tenant's, or
        those of a key: two people who begin alike have two conversations.

        A request that continues nothing gets the id of a conversation yet to be opened. Raises NotFound for a named
        conversation that the tenant does not have.
        """
        wanted = None if conversation_id is None else _uuid(conversation_id)
        said = spoken(messages)
        ends = anchors(said, links(tenant, said))
        async with self._connection() as connection:
            if wanted is None and not ends:
                return Place(str(uuid4()), None, said)
            parent = await connection.fetchrow(SQL["place"], wanted, hide(tenant), ends, key_id)
        if wanted and not parent["known"]:
            raise NotFound("conversation", str(wanted))
        if parent["id"] is None:
            return Place(str(wanted or uuid4()), None, said)
        return Place(str(parent["conversation_id"]), str(parent["id"]), said[parent["depth"] :])

    async def record(self, turn: Turn, chains: Chains | None = None) -> Recorded:
        """Keep a turn, once: a turn whose request is recorded already changes nothing. Returns after the commit.

        chains: of its history, answer included, where they are known.
        """
        prompts = _prompts(turn.messages)
        async with self._connection() as connection:
            if not prompts.positions:
                return await _keep(connection, turn, chains)  # one statement, and so a transaction of its own
            async with connection.transaction():
                await connection.execute(SQL["insert_texts"], prompts.hashes, prompts.texts)  # locks as `delete` does
                kept = await _keep(connection, turn, chains)
                if kept.turn_id == turn.id:
                    places = (prompts.positions, prompts.names, prompts.hashes)
                    await connection.execute(SQL["insert_system_prompts"], UUID(turn.id), *places)
                return kept

    async def list(
        self,
        tenant: str,
        *,
        limit: int = 100,
        after: str | ConversationSummary | None = None,
        wanted: Wanted | None = None,
    ) -> tuple[ConversationSummary, ...]:
        """The latest conversations first. after: what the page before ended with. Empty: there are no more.

        after: an id stands where its conversation stands now, a summary where it stood; such a place outlives both a
        new turn and a deletion.
        """
        wanted = wanted or Wanted()
        filters = (_aware(wanted.since), _aware(wanted.before), _hidden(wanted.model), wanted.rating)
        async with self._connection() as connection:
            place = (UUID(after.id), after.updated_at) if isinstance(after, ConversationSummary) else (None, None)
            if isinstance(after, str):
                row = await connection.fetchrow(SQL["conversation"], _uuid(after), hide(tenant))
                if row is None:
                    raise NotFound("conversation", after)
                place = (row["id"], row["updated_at"])
            found = (hide(tenant), place[0], limit, *filters, _hidden(wanted.text), place[1])
            rows = await connection.fetch(SQL["recent"], *found)
        return tuple(summary(row) for row in rows)

    async def get(self, tenant: str, conversation_id: str) -> Conversation:
        """One conversation with all its turns. Raises NotFound, also for other tenants' conversations."""
        wanted = _uuid(conversation_id)
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read"):
            row = await connection.fetchrow(SQL["conversation"], wanted, hide(tenant))
            if row is None:
                raise NotFound("conversation", conversation_id)
            turns = await connection.fetch(SQL["turns"], wanted)
            judged: dict[UUID, list[Feedback]] = {}
            for judgement in await connection.fetch(FEEDBACK["of_conversation"], wanted):
                judged.setdefault(judgement["turn_id"], []).append(feedback(judgement))
        return Conversation(
            id=str(row["id"]),
            title=show(row["title"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
            turns=tuple(recorded_turn(turn, judged.get(turn["id"], ())) for turn in turns),
        )

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """Forget a conversation, its turns, and the system prompts that nothing else has. Raises NotFound."""
        wanted = _uuid(conversation_id)
        async with self._connection() as connection, connection.transaction():
            await connection.execute(SQL["lock_texts"])
            texts = [row["sha256"] for row in await connection.fetch(SQL["texts_of"], wanted)]
            if await connection.fetchval(SQL["delete"], wanted, hide(tenant)) is None:
                raise NotFound("conversation", conversation_id)
            await connection.execute(SQL["sweep_texts"], texts)

    async def asked_of(self, tenant: str, turn_id: str) -> tuple[Message, ...]:
        """The messages of a turn's request as its client sent them, system prompts included. Raises NotFound."""
        wanted = _uuid(turn_id, "turn")
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read"):
            messages, turn = await asked(connection, tenant, wanted)
        if turn is None:
            raise NotFound("turn", turn_id)
        return messages

    async def prompt_of(self, tenant: str, turn_id: str) -> tuple[Message, ...]:
        """The messages that the model saw for a turn, system prompts and passages included. Raises NotFound."""
        wanted = _uuid(turn_id, "turn")
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read"):
            messages, turn = await asked(connection, tenant, wanted)
        if turn is None:
            raise NotFound("turn", turn_id)
        return augment(without_first(messages, dropped(turn)), passages(turn), turn["placement"])

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        with reaching_postgres():
            async with self.pool.acquire() as connection:
                connection.leaves_nothing()
                yield connection


async def asked(
    connection: asyncpg.Connection, tenant: str, turn_id: UUID
) -> tuple[tuple[Message, ...], asyncpg.Record | None]:
    """The messages of a turn's request, system prompts included, and its row of `path`. None: no such turn."""
    path = await connection.fetch(SQL["path"], turn_id, hide(tenant))
    messages = list(path_messages(path)[:-1])  # without the answer
    for row in await connection.fetch(SQL["system_prompts"], turn_id):
        prompt = Message(role="system", content=show(row["text"]), name=row["name"] and show(row["name"]))
        messages.insert(row["position"], prompt)
    return tuple(messages), path[-1] if path else None


def _hidden(text: str | None) -> str | None:
    return None if text is None else hide(text)


def _aware(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time and time.tzinfo is None else time


def _uuid(text: str, kind: str = "conversation") -> UUID:
    found = _uuid_or_none(text)
    if found is None:
        raise NotFound(kind, text)
    return found


def _uuid_or_none(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _keep(connection: asyncpg.Connection, turn: Turn, chains: Chains | None = None) -> Recorded:
    """Find the place of a turn and keep it there, or find where its request is recorded already."""
    said = spoken(turn.messages)
    history = (*said, turn.answer)
    chain, exact = chains or chains_of(turn.tenant, history)

    tenant = hide(turn.tenant)
    named = None if turn.conversation_id is None else _uuid_or_none(turn.conversation_id)
    parent = await connection.fetchrow(SQL["place"], named, tenant, anchors(said, chain[:-1]), _key_id(turn))
    conversation = parent["conversation_id"] or named or UUID(turn.id)  # the same, should it be recorded twice at once
    known = parent["depth"] or 0
    resent = {}
    if known and exact[known - 1] != parent["exact"]:
        resent = await _resent(connection, turn.tenant, said[:known], parent["id"])
    empty = not turn.answer.content.strip() and not turn.answer.tool_calls
    ends = (None if empty else chain[-1], exact[-1], len(history))
    added = (messages_json(MESSAGES, said[known:]), messages_json(RESENT, resent))
    row = (parent["id"], tenant, hide(turn.request_id), *ends, *added, *columns(turn), _title(turn))
    if await connection.fetchval(SQL["keep_turn"], UUID(turn.id), conversation, *row) is not None:
        return Recorded(turn.id, str(conversation))
    if found := await connection.fetchrow(SQL["of_request"], tenant, hide(turn.request_id)):
        return Recorded(str(found["id"]), str(found["conversation_id"]))
    conversation = uuid4()  # the one that was named is another tenant's
    await connection.fetchval(SQL["keep_turn"], UUID(turn.id), conversation, *row)
    return Recorded(turn.id, str(conversation))


def _key_id(turn: Turn) -> str | None:
    """Of the key that it came with."""
    found = turn.extras.get("key_id")
    return found if isinstance(found, str) else None


def _title(turn: Turn) -> str:
    first = next((message.content for message in turn.messages if message.role == "user"), "")
    return hide(" ".join(first[: 8 * TITLE_CHARS].split())[:TITLE_CHARS])


async def _resent(
    connection: asyncpg.Connection, tenant: str, sent: Sequence[Message], parent_id: UUID
) -> dict[int, Message]:
    """What the client sent otherwise than the parent knows it."""
    known = path_messages(await connection.fetch(SQL["path"], parent_id, hide(tenant)))
    pairs = enumerate(zip(sent, known, strict=True))
    return {index: message for index, (message, kept) in pairs if message != kept}


class _Prompts(NamedTuple):
    """The system prompts of a request: where they stood, who spoke, the hashes of the texts, the texts."""

    positions: tuple[int, ...]
    names: tuple[str | None, ...]
    hashes: tuple[bytes, ...]
    texts: tuple[str, ...]


def _prompts(messages: Sequence[Message]) -> _Prompts:
    prompts = [(index, message) for index, message in enumerate(messages) if message.role == "system"]
    texts = tuple(hide(message.content) for _, message in prompts)
    hashes = tuple(hashlib.sha256(text.encode()).digest() for text in texts)
    names = tuple(message.name and hide(message.name) for _, message in prompts)
    return _Prompts(tuple(index for index, _ in prompts), names, hashes, texts)
