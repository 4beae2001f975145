"""Stand-ins for the collaborators of the gateway: handles without Ray, a recorder without PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any

from app.conversations import Place, Turn
from app.errors import Unauthorized
from app.keyring import Caller
from app.messages import Delta, Done, End, Passage, Timings, Usage
from app.settings import RagSettings, ToolSettings
from deployments.tooling import Tooling

DONE = Done((End("stop"),), Usage(prompt_tokens=7, completion_tokens=2), Timings(queued_s=0, prefill_s=0, decode_s=0))
NO_TOOLS = Tooling(None, ToolSettings(), RagSettings())
PLACE = Place("6f9619ff-8b86-d011-b42d-00cf4fc964ff", None, ())


class Handle:
    """A deployment handle. methods: by name; what one returns is what `remote` returns."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self._methods = methods

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=self._methods[method])


class Streamed:
    """What a streaming call returns: the items, an exception raised where it stands, None for waiting forever."""

    def __init__(self, items: Iterable[Delta | Done | Exception | None]) -> None:
        self._items = iter(items)
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[Delta | Done]:
        return self

    async def __anext__(self) -> Delta | Done:
        await asyncio.sleep(0)
        for item in self._items:
            if item is None:
                await asyncio.Event().wait()
            if isinstance(item, Exception):
                raise item
            return item
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class Remembered:
    """A memory in which every conversation has one turn, and of which everything may be told."""

    async def of_conversation(self, *_: object) -> tuple[str, ...]:
        return ("mem_of_the_held_one",)

    async def told(self, _: str, found: tuple[Passage, ...]) -> tuple[Passage, ...]:
        return found


class Recorder:
    """Keeps turns in a list. failure: what recording raises."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.turns: list[Turn] = []
        self.memory = Remembered()
        self._failure = failure

    async def read(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work

    async def locate(self, *_: object) -> Place:
        return PLACE

    async def record(self, turn: Turn) -> None:
        await asyncio.sleep(0)
        if self._failure:
            raise self._failure
        self.turns.append(turn)


class Keyring:
    """Knows callers by what they show; nobody has to show anything where it knows none."""

    def __init__(self, callers: dict[str, Caller] | None = None) -> None:
        self._callers = callers or {}

    async def caller(self, shown: str) -> Caller | None:
        if shown in self._callers:
            return self._callers[shown]
        if self._callers:
            raise Unauthorized
        return None
