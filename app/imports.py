"""Keep conversations from elsewhere as if they had been held here: with their dates, marked `imported`, once.

A session is one conversation, named after what it is known by, so importing a log that has grown since adds what is
new. One that this tenant has already, word for word (its client talked through us when the log was written), is left
alone, and of one that goes on beyond what is here the rest is added to it. Imported turns are turns: listed, exported,
judged, learnt from, remembered.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID, uuid5

import asyncpg
from pydantic import JsonValue

from app.conversations import Conversations
from app.feedback import FeedbackStore, Opinion
from app.history import chains_of, spoken
from app.logs import Session, answers
from app.memory import Memory
from app.messages import Message
from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries
from app.turns import Conversation, RecordedTurn, Turn

SQL = queries("imports.sql")
NAMES = UUID(
    "5a7f4a52-6f0c-4f0c-8d0f-3f0d0a6e7c11"
)  # the namespace of our conversations' ids; changing it doubles them
UNKNOWN_MODEL = "imported"
AUTHOR = "import"
SHARED = 2  # answers in common that make two conversations one; many begin with a greeting and its answer


class Kept(NamedTuple):
    """What became of a session. new: turns; known: turns that were here already."""

    new: int
    known: int


class Imports:
    """Keeps sessions for one tenant."""

    def __init__(self, pool: asyncpg.Pool, tenant: str) -> None:
        self._pool, self._tenant = pool, tenant
        self._conversations, self._feedback = Conversations(pool), FeedbackStore(pool)

    async def keep(self, found: Session | Conversation, where: str, modified: datetime | None) -> Kept:
        """Record it. where: it came from; modified: the date of what says none itself. Raises Unavailable."""
        if isinstance(found, Conversation):
            return await self._keep_export(found, where)
        last = max(answers(found), default=-1) + 1
        if not last:
            return Kept(0, 0)
        count = sum(1 for _ in answers(found))
        whole = spoken(found.messages[:last])
        known = await self._conversations.locate(self._tenant, whole)
        if not known.new_messages:
            return Kept(0, count)
        here = whole[: len(whole) - len(known.new_messages)]
        goes_on = sum(message.role == "assistant" for message in here) >= SHARED
        began = found.began or modified or datetime.now(UTC)
        ended = max(found.ended or began, began)
        conversation = known.conversation_id if goes_on else str(uuid5(NAMES, f"{self._tenant}\n{found.key}"))
        chains = chains_of(self._tenant, spoken(found.messages))  # once: a log of an agent has hundreds of turns
        new = 0
        for number, index in enumerate(answers(found), 1):
            said = chains.first(len(spoken(found.messages[: index + 1])))
            if goes_on and len(said.exact) <= len(here):
                continue
            turn = Turn(
                request_id=f"imp_{hashlib.sha256(found.key.encode() + said.exact[-1]).hexdigest()[:40]}",
                tenant=self._tenant,
                conversation_id=conversation,
                messages=found.messages[:index],
                answer=found.messages[index],
                model=found.model or UNKNOWN_MODEL,
                client=found.client,
                latency_s=0.0,
                status="complete",
                extras=_extras(found, where),
                created_at=began + (ended - began) * number / count + timedelta(milliseconds=number),
            )
            new += (await self._conversations.record(turn, said)).turn_id == turn.id
            if index in found.bad:
                judged: Opinion = {"rating": -1.0, "comment": "weight 0 where it was imported from"}
                await self._judge(turn.request_id, AUTHOR, judged)
        return Kept(new, count - new)

    async def clear(self) -> int:
        """Forget the conversations that were imported whole and not gone on with here. Returns how many."""
        with reaching_postgres():
            rows = await self._pool.fetch(SQL["imported"], hide(self._tenant))
        for row in rows:
            await self._conversations.delete(self._tenant, str(row["id"]))
        return len(rows)

    async def remember(self) -> int:
        """Let every turn of the tenant be remembered anew. Returns how many."""
        return await Memory(self._pool).again(self._tenant)

    async def _keep_export(self, found: Conversation, where: str) -> Kept:
        """Our own export: branches, facts and feedback, as they were."""
        said: dict[str, tuple[Message, ...]] = {}
        name = str(uuid5(NAMES, f"{self._tenant}\n{found.id}"))
        here = await self._has(found.id)  # exported from here: nothing is doubled
        new = 0
        for kept in found.turns:
            history = (*said.get(kept.parent_id or "", ()), *kept.messages)
            said[kept.id] = (*history, kept.answer)
            fields = kept.model_dump(exclude={"parent_id", "messages", "feedback", "id", "extras"})
            turn = Turn(
                **fields,
                tenant=self._tenant,
                conversation_id=found.id if here else name,
                messages=history,
                extras={**kept.extras, "imported": {"format": "mindfu", "from": where, "conversation": found.id}},
            )
            new += (await self._conversations.record(turn)).turn_id == turn.id
            await self._judge_again(turn.request_id, kept)
        return Kept(new, len(found.turns) - new)

    async def _has(self, conversation_id: str) -> bool:
        with reaching_postgres():
            return bool(await self._pool.fetchval(SQL["has"], UUID(conversation_id), hide(self._tenant)))

    async def _judge_again(self, request_id: str, kept: RecordedTurn) -> None:
        for said in kept.feedback:
            opinion: Opinion = {"rating": said.rating, "comment": said.comment, "correction": said.correction}
            await self._judge(request_id, said.author, opinion)

    async def _judge(self, request_id: str, author: str, opinion: Opinion) -> None:
        turn_id = await self._feedback.turn(self._tenant, request_id=request_id)
        if turn_id is not None:
            await self._feedback.give(turn_id, author, opinion)


def _extras(found: Session, where: str) -> dict[str, JsonValue]:
    imported: JsonValue = {"format": found.format, "from": where, "session": found.key}
    tools: list[JsonValue] = [tool.model_dump(exclude_defaults=True) for tool in found.tools]
    return {"imported": imported} | ({"tools": tools} if tools else {})
