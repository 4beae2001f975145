"""What every dialect's renderer offers, and the events that its stream is made of.

A dialect is two things: request models that translate to `Generate`, and a renderer of one answer. The machinery
between HTTP and the engine (deployments/routes/answers.py) knows no more of it than this.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json

from app.answer import Choice
from app.errors import MindFuError
from app.messages import Delta, Done
from app.tools.runner import ToolRun

Json = dict[str, Any]


class Event(NamedTuple):
    """One server-sent event. data: JSON, or text that is sent as it stands. name: its `event:` line, if it has one."""

    data: Json | str
    name: str | None = None

    def framed(self) -> bytes:
        """As it goes over the wire."""
        data = self.data.encode() if isinstance(self.data, str) else to_json(self.data)
        head = b"" if self.name is None else b"event: " + self.name.encode() + b"\n"
        return head + b"data: " + data + b"\n\n"


class Renderer(Protocol):
    """One answer in a client's dialect: `whole`, or streamed as opening, pieces and closing.

    Made when the answer has opened, used for that one answer; it may remember what it has sent. Everything is yielded
    in the order in which it is sent, and nothing after `closing` or `error`.
    """

    def opening(self) -> Iterable[Event]:
        """What is sent before the first token."""

    def piece(self, delta: Delta) -> Iterable[Event]:
        """One delta."""

    def ran(self, run: ToolRun) -> None:
        """A call of the server's own tools was made: it is told in `tools_used` when the answer ends."""

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:
        """What ends a stream that did not fail. choices: the whole answers, as `whole` gets them."""

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """What ends a stream that failed."""

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The body of an answer that is not streamed."""
