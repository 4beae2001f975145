"""GET /v1/tools: what the server can do for a model."""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from app.dialects.events import Json
from app.dialects.openai_tools import external
from deployments.routes.bodies import Route

if TYPE_CHECKING:
    from deployments.gateway import Gateway


def routes(gateway: "Gateway") -> APIRouter:
    """The routes of one gateway's tools."""
    router = APIRouter(tags=["tools"], route_class=Route)

    @router.get("/v1/tools")
    async def get_available_tools() -> Json:
        """The tools that `server_tools` may name, as chat completions define tools, and the states of MCP servers."""
        offered = await gateway.tooling.offered()
        return {
            "object": "list",
            "enabled": gateway.settings.tools.enabled,
            "data": [external(one.tool) | {"reads": one.reads} for one in offered],
            "mcp_servers": await gateway.tooling.servers(),
        }

    return router
