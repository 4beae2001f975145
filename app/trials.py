"""What became of an adapter's answers: how many did not end, how many people disliked; and what shadows said unseen.

Every method raises Unavailable while PostgreSQL is away.
"""

from datetime import datetime
from uuid import UUID

import asyncpg

from app.messages import Message, Strict
from app.nul import hide, show
from app.postgres import reaching_postgres
from app.queries import queries
from app.turn_rows import ANSWER, load, messages_json
from app.turns import TurnStatus

SQL = queries("trials.sql")
MOST_TURNS = 1000  # the latest, that are looked at
READ_S = 10.0


class Standing(Strict):
    """Counts of answers. unfinished: they failed, or were cut at a limit of tokens. judged: rated or corrected;
    disliked: rated below 0 by somebody, or corrected without a rating.
    """

    turns: int = 0
    unfinished: int = 0
    judged: int = 0
    disliked: int = 0


class Shadow(Strict):
    """What an adapter on trial would have answered in the place of a turn's answer."""

    turn_id: str
    adapter: str
    answer: Message
    status: TurnStatus
    error: str | None = None
    completion_tokens: int | None = None
    latency_s: float


class Compared(Shadow):
    """A shadow beside what people saw. shown_by: the adapter, None is the bare base."""

    conversation_id: str
    shown: Message
    shown_by: str | None
    created_at: datetime


class Trials:
    """Reads and writes these of one database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def keep(self, shadow: Shadow) -> bool:
        """Keep one, once. False: its turn is not there (yet, or any more), and nothing was kept."""
        values = (
            UUID(shadow.turn_id),
            shadow.adapter,
            messages_json(ANSWER, shadow.answer),
            shadow.status,
            shadow.error and hide(shadow.error),
            shadow.completion_tokens,
            shadow.latency_s,
        )
        with reaching_postgres():
            return await self.pool.fetchval(SQL["keep_shadow"], *values, timeout=READ_S) is not None

    async def shadows(
        self, model: str, adapter: str, tenant: str | None = None, limit: int = 20
    ) -> tuple[Compared, ...]:
        """The latest first. tenant: whose, None takes all."""
        with reaching_postgres():
            rows = await self.pool.fetch(SQL["shadows"], model, adapter, tenant and hide(tenant), limit, timeout=READ_S)
        return tuple(
            Compared(
                turn_id=str(row["turn_id"]),
                conversation_id=str(row["conversation_id"]),
                adapter=adapter,
                answer=load(ANSWER, row["answer"]),
                shown=load(ANSWER, row["shown"]),
                shown_by=row["shown_by"],
                error=row["error"] and show(row["error"]),
                **{name: row[name] for name in ("status", "completion_tokens", "latency_s", "created_at")},
            )
            for row in rows
        )

    async def unseen(self, model: str, adapter: str, since: datetime) -> Standing:
        """Of an adapter's shadows."""
        with reaching_postgres():
            row = await self.pool.fetchrow(SQL["shadows_standing"], model, adapter, since, timeout=READ_S)
        return Standing(**row)

    async def standing(self, model: str, adapter: str | None, since: datetime, until: datetime) -> Standing:
        """Of the latest answers to the model's own name. adapter: None is the bare base."""
        with reaching_postgres():
            values = model, adapter or "", since, until, MOST_TURNS
            row = await self.pool.fetchrow(SQL["standing"], *values, timeout=READ_S)
        return Standing(**row)
