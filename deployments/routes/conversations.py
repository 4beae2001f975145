"""The kept conversations: list, get, delete, export, and what people think of their answers."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from app.dialects.feedback import FeedbackRequest
from app.errors import InvalidRequest, NotFound, Unavailable
from app.export import branch, text, training_line
from app.turns import Conversation, ConversationSummary, Wanted
from deployments.routes.bodies import Route
from deployments.routes.callers import Tenant

if TYPE_CHECKING:
    from deployments.gateway import Gateway

PAGE = 100  # conversations that an export looks up at a time
MEDIA = {"text": "text/plain; charset=utf-8", "json": "application/json", "jsonl": "application/jsonl"}
Format = Literal["text", "json", "jsonl"]
Limit = Annotated[int, Query(ge=1, le=1000)]
Since = Annotated[datetime | None, Query(alias="from")]
Before = Annotated[datetime | None, Query(alias="to")]
Model = Annotated[str | None, Query(max_length=1000)]
Text = Annotated[str | None, Query(min_length=1, max_length=1000)]
Rating = Literal["up", "down", "none"] | None
Person = Annotated[str | None, Query(min_length=1, max_length=1000)]
Everything = Annotated[bool, Query(alias="all")]
Ids = Annotated[tuple[str, ...], Query(alias="id", max_length=1000)]


def routes(gateway: "Gateway") -> APIRouter:
    """The conversation routes of one gateway."""
    router = APIRouter(tags=["conversations"], route_class=Route)

    @router.get("/v1/conversations")
    async def list_conversations(
        tenant: Tenant,
        limit: Limit = 100,
        after: str | None = None,
        since: Since = None,
        before: Before = None,
        model: Model = None,
        rating: Rating = None,
        q: Text = None,
    ) -> dict[str, Any]:
        """The conversations, latest first."""
        wanted = Wanted(since=since, before=before, model=model, rating=rating, text=q)
        found = await _page(gateway, tenant, wanted, limit=limit + 1, after=after)
        page = found[:limit]
        return {
            "object": "list",
            "data": [summary.model_dump(mode="json") for summary in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > limit,
        }

    @router.get("/v1/conversations/export")
    async def export(
        tenant: Tenant,
        format: Format = "jsonl",  # noqa: A002 - what clients call it
        since: Since = None,
        before: Before = None,
        model: Model = None,
        rating: Rating = None,
        q: Text = None,
        ids: Ids = (),
    ) -> StreamingResponse:
        """Those that match, streamed, or those that are named: to read, to keep, or to fine-tune with."""
        wanted = Wanted(since=since, before=before, model=model, rating=rating, text=q)
        if ids and wanted != Wanted():
            raise InvalidRequest("Name conversations by 'id', or describe them by filters, not both.", "id")
        for named in ids:
            await gateway.recorder.read(gateway.conversations.get(tenant, named))
        # A failure until here has its own status; a later one cuts the answer.
        first = () if ids else await _page(gateway, tenant, wanted)
        name = f'attachment; filename="conversations.{"txt" if format == "text" else format}"'
        told = _exported(gateway, tenant, _ids(gateway, tenant, wanted, first, ids), format)
        return StreamingResponse(told, media_type=MEDIA[format], headers={"content-disposition": name})

    @router.get("/v1/conversations/{conversation_id}")
    async def get(tenant: Tenant, conversation_id: str) -> dict[str, Any]:
        """One conversation with its turns in order."""
        found = await gateway.recorder.read(gateway.conversations.get(tenant, conversation_id))
        return found.model_dump(mode="json")

    @router.delete("/v1/conversations/{conversation_id}")
    async def delete(tenant: Tenant, conversation_id: str) -> dict[str, Any]:
        """Forget a conversation. `adapters` learnt from it, and are promoted no more."""
        gone = await gateway.recorder.read(gateway.forgetting.conversation(tenant, conversation_id))
        told = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
        return told | {"adapters": list(gone.adapters)}

    @router.delete("/v1/conversations")
    async def delete_all(
        tenant: Tenant, user: Person = None, key: Person = None, *, everything: Everything = False
    ) -> dict[str, Any]:
        """Forget all conversations of a person, as clients named them, of a key, or with `all=true` of the tenant."""
        if (user is not None) + (key is not None) + everything != 1:
            raise InvalidRequest("Name one of 'user', 'key', and 'all=true', which are all conversations.", "user")
        gone = await gateway.forgetting.all_of(tenant, user=user, key=key)  # which may take a while
        return {"object": "conversations.deleted", "deleted": gone.conversations, "adapters": list(gone.adapters)}

    @router.post("/v1/feedback")
    async def judge(tenant: Tenant, body: FeedbackRequest) -> dict[str, Any]:
        """Say what an answer was worth, or what it should have been."""
        opinion = body.opinion()
        turn_id = await _turn(gateway, tenant, body)
        given = await gateway.recorder.read(gateway.feedback.give(turn_id, body.user or "", opinion))
        return {"object": "feedback", "turn_id": turn_id, **given.model_dump(mode="json")}

    return router


async def _page(
    gateway: "Gateway",
    tenant: str,
    wanted: Wanted,
    *,
    limit: int = PAGE,
    after: str | ConversationSummary | None = None,
) -> tuple[ConversationSummary, ...]:
    for name, time in (("from", wanted.since), ("to", wanted.before)):
        if time is not None and not 1 < time.year < 9999:  # a time zone may carry it out of the calendar
            raise InvalidRequest(f"'{name}' is in the year {time.year}.", name)
    return await gateway.recorder.read(gateway.conversations.list(tenant, limit=limit, after=after, wanted=wanted))


async def _ids(
    gateway: "Gateway", tenant: str, wanted: Wanted, page: tuple[ConversationSummary, ...], named: Sequence[str]
) -> AsyncIterator[str]:
    """Of those that are named; else of all that match, beginning with a page of them."""
    for id_ in named:
        yield id_
    while page:
        for summary in page:
            yield summary.id
        page = await _page(gateway, tenant, wanted, after=page[-1])


async def _exported(gateway: "Gateway", tenant: str, ids: AsyncIterator[str], format_: Format) -> AsyncIterator[str]:
    """The export in pieces. What is deleted meanwhile is left out; what goes on before its turn comes, too."""
    lead = "[\n"
    async for id_ in ids:
        told = await _told(gateway, tenant, id_, format_)
        if told is not None:
            yield lead + told if format_ == "json" else told
            lead = ",\n"
    if format_ == "json":
        yield "[]\n" if lead == "[\n" else "\n]\n"


async def _told(gateway: "Gateway", tenant: str, conversation_id: str, format_: Format) -> str | None:
    try:
        found = await gateway.recorder.read(gateway.conversations.get(tenant, conversation_id))
        if format_ == "jsonl":
            return await _line(gateway, tenant, found)
    except NotFound:
        return None
    return text(found) + "\n" if format_ == "text" else found.model_dump_json()


async def _line(gateway: "Gateway", tenant: str, conversation: Conversation) -> str | None:
    path = branch(conversation.turns)
    if not path:
        return None
    asked = await gateway.recorder.read(gateway.conversations.asked_of(tenant, path[-1].id))
    system = [(place, message) for place, message in enumerate(asked) if message.role == "system"]
    line = training_line(path, system)
    return None if line is None else line + "\n"


async def _turn(gateway: "Gateway", tenant: str, body: FeedbackRequest) -> str:
    found = await gateway.recorder.read(gateway.feedback.turn(tenant, turn_id=body.turn_id, request_id=body.request_id))
    if found is not None:
        return found
    if gateway.recorder.pending():
        raise Unavailable("turn", "turns wait to be recorded in the database, and it may be one of them")
    raise NotFound("turn", body.turn_id) if body.turn_id else NotFound("turn of the request", str(body.request_id))
