"""An MCP server with tools that work, fail, hang and die: `python -m tests.mcp_server [PORT]`.

Without a port it speaks by its standard streams; with one it is at http://127.0.0.1:PORT/mcp, for who shows TOKEN.
"""

import asyncio
import os
import sys
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "swordfish"
server = MCPServer("test")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def variable(name: str) -> str:
    """Tell a variable of the environment."""
    return os.environ.get(name, "not set")


@server.tool(structured_output=False)
def plain() -> str:
    """Say something."""
    return "hello"


@server.tool(structured_output=False)
def picture() -> Image:
    """Show something."""
    return Image(data=b"\x89PNG", format="png")


@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("not today")


@server.tool()
async def hang() -> str:
    """Never answer."""
    await asyncio.Event().wait()
    return ""


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(1)


@server.tool(name="odd name!")
def odd() -> str:
    """Have a name that OpenAI's clients do not take."""
    return "odd"


@server.tool()
async def grow(context: Context) -> str:
    """Offer one more tool, and say so."""
    server.add_tool(lambda: "grown", name="grown", description="Came later.")
    await context.notify_tools_changed()
    return "more"


class Locked:
    """Refuses who does not show the token."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and headers.get(b"authorization") != f"Bearer {TOKEN}".encode():
            await PlainTextResponse("who are you?", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        app: Any = Locked(server.streamable_http_app())
        uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
    else:
        server.run()
