"""What a call of a tool comes to: JSON text for the model, of a result or of what went wrong.

Nothing that goes wrong in a tool is raised: the model is told, and may try again or say so.
"""

import asyncio
import logging
from typing import NamedTuple

from pydantic_core import to_json

from app.errors import MindFuError
from app.tools.context import Context, Json
from app.tools.failures import ToolFailed
from app.tools.registry import ServerTool

FAILED = '{"status":"error"'  # how the text of a call begins that did not succeed

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """text: JSON, as the model is told."""

    succeeded: bool
    text: str


def refused(message: str) -> Outcome:
    """A call that did not succeed."""
    told: Json = {"status": "error", "error": message}
    return Outcome(succeeded=False, text=to_json(told).decode())


async def outcome(tool: ServerTool, arguments: str, context: Context, *, max_chars: int) -> Outcome:
    """Run a tool. arguments: JSON text, as the model wrote it; max_chars: of a result's JSON text."""
    timeout_s = tool.timeout_s or context.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            told = await tool.run(arguments, context)
        text = to_json(told, inf_nan_mode="null").decode()
    except (ToolFailed, MindFuError) as failure:
        return refused(str(failure))
    except TimeoutError:
        return refused(f"'{tool.name}' did not answer within {timeout_s:g} s.")
    except Exception as error:  # the edge of the tools: the model is told that it failed, we why
        log.exception("the tool %s failed", tool.name)
        return refused(f"'{tool.name}' failed: {type(error).__name__}.")
    if len(text) > max_chars:
        return refused(f"The result has {len(text)} characters, at most {max_chars} are told. Ask for less.")
    return Outcome(succeeded=True, text=text)
