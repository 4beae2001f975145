"""The store of feedback: what people think of answers, one opinion per turn and author.

A turn is named by its id, or by that of its request, as any dialect tells it: `x-request-id`, `chatcmpl-…`, `cmpl-…`,
`msg_…`, `resp_…`. An answer can be judged as soon as it has ended, because its turn is recorded before the end is sent.
Every method raises Unavailable while PostgreSQL is away.
"""

from collections.abc import Mapping
from typing import Any, TypedDict
from uuid import UUID

import asyncpg

from app.errors import InvalidRequest, NotFound
from app.messages import Message
from app.nul import hide
from app.postgres import reaching_postgres
from app.queries import queries
from app.turn_rows import ANSWER, feedback, messages_json
from app.turns import Feedback

SQL = queries("feedback.sql")
OF_DIALECTS = ("chatcmpl-", "cmpl-", "msg_", "resp_")  # in front of what tells the request


class Opinion(TypedDict, total=False):
    """What is said of a turn. Absent: as it was said before. None: withdrawn. rating: -1 is bad, 1 is good."""

    rating: float | None
    comment: str | None
    correction: Message | None


class FeedbackStore:
    """Reads and writes the feedback of one database."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def turn(self, tenant: str, *, turn_id: str | None = None, request_id: str | None = None) -> str | None:
        """The id of the turn that one of both names. None: the tenant has no such turn (yet).

        Raises InvalidRequest for a request id that several turns share: clients may choose them.
        """
        with reaching_postgres():
            if turn_id is not None:
                found = await self.pool.fetch(SQL["turn"], _uuid(turn_id), hide(tenant))
            else:
                assert request_id is not None
                names = [hide(own_id(request_id)), hide(request_id)]
                found = await self.pool.fetch(SQL["turns_of_request"], hide(tenant), names)
        if len(found) > 1:
            raise InvalidRequest(
                f"Several turns have the request id '{request_id}'. Name one by 'turn_id'.", "request_id"
            )
        return str(found[0]["id"]) if found else None

    async def give(self, turn_id: str, author: str, opinion: Opinion) -> Feedback:
        """Keep an opinion on a turn, in the place of the same author's earlier one. Raises NotFound."""
        correction = opinion.get("correction")
        said = (
            opinion.get("rating"),
            _hidden(opinion, "comment"),
            None if correction is None else messages_json(ANSWER, correction),
        )
        with reaching_postgres():
            try:
                row = await self.pool.fetchrow(SQL["give"], UUID(turn_id), hide(author), *said, list(opinion))
            except asyncpg.ForeignKeyViolationError as exc:  # deleted in this moment
                raise NotFound("turn", turn_id) from exc
        return feedback(row)

    async def state(self, tenant: str) -> str:
        """Other feedback, other text: how much there is of a tenant's, and since when."""
        with reaching_postgres():
            row = await self.pool.fetchrow(SQL["state"], hide(tenant))
        return f"{row['given']} {row['latest']}"


def own_id(request_id: str) -> str:
    """Our own id of a request, from what the dialects make of it."""
    stem = next((request_id.removeprefix(mark) for mark in OF_DIALECTS if request_id.startswith(mark)), request_id)
    return stem if stem == request_id or stem.startswith("req_") else f"req_{stem}"


def _hidden(opinion: Mapping[str, Any], field: str) -> str | None:
    text = opinion.get(field)
    return None if text is None else hide(text)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("turn", text) from None
