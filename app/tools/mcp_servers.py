"""Tools of MCP servers (https://modelcontextprotocol.io), through the official client.

    server = McpServer("github", settings)
    connection = asyncio.create_task(server.forever())       # connects, and connects again whenever that was lost
    server.tools                                             # github__create_issue, …

A server is a program that is started here and spoken to by its standard streams, or a URL (streamable HTTP). Its tools'
schemas are passed through as they are. While it is away its tools stay, and say so when they are called. A call that
fails because the server ended is not made again: nobody knows whether it was done.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Self

import httpx2
from mcp import MCPError, StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT, CallToolResult, TextContent, ToolListChangedNotification
from mcp_types import Tool as Told

from app.arguments import value_of
from app.messages import Tool
from app.settings import McpSettings
from app.tools.context import Context, Json
from app.tools.failures import ToolFailed
from app.tools.registry import ServerTool

START_S = 30.0  # that a server may take to say what it offers
ASKED_AGAIN_S = 300.0  # what it offers
BACKOFF_S = (0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
LASTING_S = 10.0  # a connection that was lost sooner counts as failed
MOST_TOOLS = 128  # of one server
NAME_CHARS = 64  # that OpenAI's clients take

log = logging.getLogger(__name__)


class McpServer:
    """One server. variables: the environment, of which it gets what its settings name.

    tools: what it offers, as `<name>__<tool>`. state: `ok`, or why it is away.
    """

    def __init__(self, name: str, settings: McpSettings, variables: Mapping[str, str]) -> None:
        self.name, self.state = name, "it was not reached yet"
        self.tools: tuple[ServerTool, ...] = ()
        self.known = asyncio.Event()  # that it is there, or is not
        self._settings, self._variables = settings, variables
        self._client: Client | None = None
        self._lost, self._changed = asyncio.Event(), asyncio.Event()

    async def forever(self) -> None:
        """Be connected, until cancelled."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._connected()
                self._away("it ended, and is started again" if self._settings.command else "the connection was lost")
            except Exception as error:  # noqa: BLE001 – a loop's edge: whatever a server does, it is tried again
                self._away(_reason(error))
            failures = 0 if time.monotonic() - started > LASTING_S else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _connected(self) -> None:
        """Connect, and stay so until the connection is lost."""
        self._lost.clear()
        async with (
            asyncio.timeout(START_S) as starting,
            self._transport() as streams,
            Client(_Given(streams), message_handler=self._heard) as client,
        ):
            listening = asyncio.create_task(self._listen(client))
            try:
                await self._learn(client)
                starting.reschedule(None)
                self._client, self.state = client, "ok"
                self.known.set()
                while not self._lost.is_set():
                    self._changed.clear()
                    await _first(self._lost, self._changed, within_s=ASKED_AGAIN_S)
                    if not self._lost.is_set():
                        await self._learn(client)
            finally:
                self._client = None
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    def _away(self, reason: str) -> None:
        log.warning("The MCP server '%s' is away: %s", self.name, reason)
        self.state = reason
        self.known.set()

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Any]:
        """The streams, of which the first says when it ends."""
        async with self._opened() as (incoming, outgoing):
            yield _Watched(incoming, self._lost), outgoing

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        settings = self._settings
        if settings.command:
            program, *arguments = settings.command
            environment = settings.env | {name: self._variable(name) for name in settings.pass_env}
            server = StdioServerParameters(command=program, args=arguments, env=environment, cwd=settings.cwd)
            async with stdio_client(server) as streams:
                yield streams
            return
        assert settings.url
        headers = {"authorization": f"Bearer {self._variable(settings.token_env)}"} if settings.token_env else {}
        timeout = httpx2.Timeout(settings.timeout_s, read=max(settings.timeout_s, ASKED_AGAIN_S))
        async with (
            httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http,
            streamable_http_client(settings.url, http_client=http) as streams,
        ):
            yield streams

    def _variable(self, name: str) -> str:
        if name not in self._variables:
            raise KeyError(f"the environment variable {name} is not set")
        return self._variables[name]

    async def _listen(self, client: Client) -> None:
        """Servers of newer versions of the protocol tell of changes to who listens, older ones tell everybody."""
        with suppress(ListenNotSupportedError, SubscriptionLost, MCPError, TimeoutError):
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._changed.set()

    async def _heard(self, message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._changed.set()

    async def _learn(self, client: Client) -> None:
        """Ask what it offers."""
        told: list[Told] = []
        cursor: str | None = None
        async with asyncio.timeout(START_S):
            while True:
                page = await client.list_tools(cursor=cursor, cache_mode="refresh")
                told += page.tools
                cursor = page.next_cursor
                if cursor is None or len(told) >= MOST_TOOLS:
                    break
        only = self._settings.only
        offered = {
            tool.name: tool
            for one in told[:MOST_TOOLS]
            if only is None or one.name in only
            if (tool := self._tool(one))
        }
        self.tools = tuple(offered.values())

    def _tool(self, told: Told) -> ServerTool:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{self.name}__{told.name}")[:NAME_CHARS]
        tool = Tool(name=name, description=told.description or told.title or "", parameters=told.input_schema)
        reads = bool(told.annotations and told.annotations.read_only_hint)
        return ServerTool(tool, partial(self._call, told.name), reads=reads, timeout_s=self._settings.timeout_s)

    async def _call(self, name: str, arguments: str, context: Context) -> Json:  # noqa: ARG002 – of every tool
        """Raises ToolFailed."""
        if self._client is None:
            raise ToolFailed(f"The MCP server '{self.name}' is away: {self.state}.")
        try:
            given = value_of(arguments.strip() or "{}")
        except ValueError as error:
            raise ToolFailed(f"The arguments are not JSON: {error}.") from error
        if not isinstance(given, dict):
            raise ToolFailed("The arguments must be an object.")
        try:
            return _told(await self._client.call_tool(name, given, read_timeout_seconds=self._settings.timeout_s))
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise TimeoutError from error
            self._changed.set()  # look whether it is still there, and what it offers
            if error.code == CONNECTION_CLOSED:
                raise ToolFailed(f"The MCP server '{self.name}' ended while it worked on this.") from error
            raise ToolFailed(f"The MCP server '{self.name}' refused: {error.message}") from error


class _Given:
    """Streams that are open already, as the client takes them."""

    def __init__(self, streams: Any) -> None:
        self._streams = streams

    async def __aenter__(self) -> Any:
        return self._streams

    async def __aexit__(self, *_: object) -> None: ...


class _Watched:
    """A stream of messages that says when it has ended."""

    def __init__(self, stream: Any, ended: asyncio.Event) -> None:
        self._stream, self._ended = stream, ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> "_Watched":
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._stream)
        except BaseException:
            self._ended.set()
            raise

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *told: object) -> Any:
        return await self._stream.__aexit__(*told)


async def _first(*events: asyncio.Event, within_s: float) -> None:
    """Wait for one of them, or for the time."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _told(result: CallToolResult) -> Json:
    """What a call came to. Raises ToolFailed where the server says that it failed."""
    texts = [
        block.text if isinstance(block, TextContent) else f"[{block.type}, which this model cannot read]"
        for block in result.content
    ]
    if result.is_error:
        raise ToolFailed("\n".join(texts) or "The MCP server says that it failed.")
    if isinstance(result.structured_content, dict):
        return result.structured_content
    return {"content": "\n".join(texts)}


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:300]
