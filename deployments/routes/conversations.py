"""The kept conversations: list, get, delete."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from deployments.routes.generation import TENANT

if TYPE_CHECKING:
    from deployments.gateway import Gateway


def routes(gateway: "Gateway") -> APIRouter:
    """The conversation routes of one gateway."""
    router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

    @router.get("")
    async def list_conversations(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, after: str | None = None
    ) -> dict[str, Any]:
        """The conversations, latest first."""
        page = await gateway.conversations.list(TENANT, limit=limit, after=after)
        return {"object": "list", "data": [summary.model_dump(mode="json") for summary in page]}

    @router.get("/{conversation_id}")
    async def get(conversation_id: str) -> dict[str, Any]:
        """One conversation with its turns in order."""
        return (await gateway.conversations.get(TENANT, conversation_id)).model_dump(mode="json")

    @router.delete("/{conversation_id}")
    async def delete(conversation_id: str) -> dict[str, Any]:
        """Forget a conversation."""
        await gateway.conversations.delete(TENANT, conversation_id)
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}

    return router
