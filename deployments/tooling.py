"""What a request gets of the server's tools: which ones the model is told of, and what runs its calls.

    kit = await tooling.kit(request.state.caller, body.server_tools, rag=body.rag)
    generate = body.generate(..., served=kit.tools)
    ask = ask_of(request, generate, ..., kit=kit)

Three things switch tools on: the setting `tools.enabled`, the scope `tools` of the key, and the request itself.
"""

import asyncio
import logging
from functools import partial

from ray.serve.handle import DeploymentHandle

from app.errors import MindFuError, ScopeMissing, UnsupportedOption
from app.keyring import Caller
from app.messages import RagOptions
from app.settings import RagSettings, ToolSettings
from app.tools.kit import NONE, Kit
from app.tools.loop import ToolLoop
from app.tools.offer import PARAM, Offered, ServerTools, Whose, wanted
from app.tools.outcome import Outcome, refused
from app.tools.runner import Runner
from deployments.calls import call

log = logging.getLogger(__name__)
PART = "tool process"
SLACK_S = 30.0  # beyond what a call may take, for a process that hangs


class Tooling:
    """Asks the tools' process. tools: None where there are none; slack_s: beyond what a call may take."""

    def __init__(
        self, tools: DeploymentHandle | None, settings: ToolSettings, rag: RagSettings, *, slack_s: float = SLACK_S
    ) -> None:
        self._tools, self._settings, self._rag = tools, settings, rag
        own = (server.timeout_s for server in settings.mcp.values())
        self._longest_s = max(settings.timeout_s, *own, 0.0) + slack_s

    async def offered(self) -> tuple[Offered, ...]:
        """All tools. None where they are off. Raises Unavailable."""
        found: tuple[Offered, ...] = await call(PART, self._tools, "offered") if self._tools else ()
        return found

    async def servers(self) -> dict[str, str]:
        """The states of the MCP servers by name. Raises Unavailable."""
        found: dict[str, str] = await call(PART, self._tools, "servers") if self._tools else {}
        return found

    async def kit(
        self,
        caller: Caller,
        names: ServerTools | None,
        *,
        rag: bool | RagOptions | None = None,
        max_calls: int | None = None,
        param: str = PARAM,
    ) -> Kit:
        """The tools that a request asks for. max_calls: of the whole answer; param: the field that asks.

        Raises UnsupportedOption where there are none here, ScopeMissing, InvalidRequest for unknown names, Unavailable.
        """
        if not names:
            return NONE
        if self._tools is None:
            message = f"'{param}' asks for tools, and this server runs none: its setting tools.enabled is false."
            raise UnsupportedOption(message, param)
        if not caller.may("tools"):
            raise ScopeMissing("tools", tuple(sorted(caller.scopes)))
        chosen = wanted(names, await self.offered(), param)
        collections = rag.collections if isinstance(rag, RagOptions) else None
        whose = Whose(tenant=caller.tenant, collections=collections or self._rag.collections)
        reads = {one.tool.name: one.reads for one in chosen}
        runner = Runner(reads, partial(self._run, whose), max_calls=max_calls)
        loop = partial(ToolLoop, runner=runner, iterations=self._settings.max_iterations)
        return Kit(tuple(one.tool for one in chosen), loop)

    async def _run(self, whose: Whose, name: str, arguments: str) -> Outcome:
        try:
            async with asyncio.timeout(self._longest_s):
                told: Outcome = await call(PART, self._tools, "run", whose, name, arguments)
        except TimeoutError:
            return refused(f"'{name}' did not answer within {self._longest_s:g} s.")
        except MindFuError as error:  # their process ended, or too much is asked of it
            return refused(str(error))
        except Exception as error:  # the edge of the tools: an answer must not end with a bug of one
            log.exception("the tool %s failed", name)
            return refused(f"'{name}' failed: {type(error).__name__}.")
        return told
