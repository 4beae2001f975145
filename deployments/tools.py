"""The Tools deployment: the server's tools, in a process of their own. Not there unless `tools.enabled` is set.

In a process of its own a tool that hangs or needs memory stops no answer, one machine's folder is the workspace however
many gateways there are, and each MCP server is started once. It ends by itself with what it runs.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray.serve.handle import DeploymentHandle

from app.memory import COLLECTION
from app.messages import Passage, Search
from app.settings import RagSettings, ToolSettings, environment
from app.tools.catalogue import own
from app.tools.context import Context
from app.tools.network import Network
from app.tools.offer import Offered, Whose
from app.tools.outcome import Outcome, outcome, refused
from app.tools.registry import ServerTool
from app.tools.sandbox import shared, workspace
from deployments.retriever import Handle

if TYPE_CHECKING:
    from app.tools.mcp_servers import McpServer

THREADS = 16  # calls of plain functions at the same time
MCP_WAIT_S = 10.0  # that the first look at the tools waits for MCP servers that are starting

log = logging.getLogger(__name__)


class Searches(Protocol):
    """What the tools need of the retriever."""

    async def search(self, search: Search) -> tuple[Passage, ...]:
        """Passages, best first."""


class Tools:
    """All tools of the server. home: where workspaces lie, unless `tools.roots` names other folders.

    Must be made where an event loop runs. Raises Misconfigured.
    """

    def __init__(
        self, retriever: DeploymentHandle | Searches, settings: ToolSettings, rag: RagSettings, home: Path
    ) -> None:
        self._retriever: Searches = (
            Handle("retriever", retriever) if isinstance(retriever, DeploymentHandle) else retriever
        )
        self._settings, self._rag, self._home = settings, rag, home
        self._threads = ThreadPoolExecutor(THREADS, "tool")
        self._own, self._shared = own(settings, self._threads), shared(settings, home)
        self._servers = _servers(settings)
        self._connections = [asyncio.create_task(server.forever()) for server in self._servers]

    async def check_health(self) -> None:
        """Return when the loop turns. MCP servers that are away are told by `servers`."""

    async def close(self) -> None:
        """End the MCP servers that were started here."""
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._threads.shutdown(wait=False)

    async def offered(self) -> tuple[Offered, ...]:
        """The tools that there are at this moment."""
        return tuple(Offered(tool=tool.told, reads=tool.reads) for tool in (await self._tools()).values())

    async def servers(self) -> dict[str, str]:
        """The state of every MCP server by its name: `ok`, or why it is away."""
        await self._known()
        return {server.name: server.state for server in self._servers}

    async def run(self, whose: Whose, name: str, arguments: str) -> Outcome:
        """Call a tool. What goes wrong is the outcome."""
        tool = (await self._tools()).get(name)
        if tool is None:
            return refused(f"'{name}' is not there at the moment.")
        started = time.perf_counter()
        told = await outcome(tool, arguments, self._context(whose), max_chars=self._settings.max_result_chars)
        came_to, took_s = "ok" if told.succeeded else told.text, time.perf_counter() - started
        log.info("tool %s for tenant %s: %s, %.3f s", name, whose.tenant, came_to[:200], took_s)
        return told

    async def _tools(self) -> Mapping[str, ServerTool]:
        await self._known()
        all_ = dict(self._own)
        for server in self._servers:
            for tool in server.tools:
                all_.setdefault(tool.name, tool)
        return {name: tool for name, tool in all_.items() if name not in self._settings.without}

    async def _known(self) -> None:
        """Wait for MCP servers that are starting, a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MCP_WAIT_S):
                for server in self._servers:
                    await server.known.wait()

    def _context(self, whose: Whose) -> Context:
        return Context(
            sandbox=self._shared or workspace(self._settings, self._home, whose.tenant),
            network=Network(private=self._settings.private_network),
            search=partial(self._search, whose),
            max_file_bytes=self._settings.max_file_bytes,
            timeout_s=self._settings.timeout_s,
        )

    async def _search(self, whose: Whose, query: str, top_k: int) -> tuple[Passage, ...]:
        collections = tuple(name for name in whose.collections if name != COLLECTION)
        if not collections:
            return ()
        return await self._retriever.search(
            Search(
                query=query,
                tenant=whose.tenant,
                collections=collections,
                top_k=top_k,
                min_score=self._rag.min_score,
                neighbours=self._rag.neighbours,
            )
        )


def _servers(settings: ToolSettings) -> tuple["McpServer", ...]:
    if not settings.mcp:
        return ()
    from app.tools.mcp_servers import McpServer  # takes half a second, and most installations have none

    variables = environment()
    return tuple(McpServer(name, server, variables) for name, server in settings.mcp.items())
