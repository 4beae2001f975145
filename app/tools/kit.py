"""The server's tools of one request: what the model is told of, and the loop that runs its calls."""

from collections.abc import Callable
from dataclasses import dataclass

from app.messages import Tool
from app.tools.loop import Generating, ToolLoop


@dataclass(frozen=True)
class Kit:
    """loop: makes the loop of the one answer; None where no tools are wanted."""

    tools: tuple[Tool, ...] = ()
    loop: Callable[[Generating], ToolLoop] | None = None


NONE = Kit()
