"""The engines that are kept warm: loaded when first asked for, used by many requests, put away when others need room.

Requests borrow. Whoever asks for a model that is not loaded waits for it, a bounded time. Where room is needed, the
engine that was not asked for the longest goes: new requests no longer reach it, those that run on it finish first. One
model loads at a time, and each serves all that waited for it before it can go, so that models take turns and no request
is dropped by a switch. One event loop; loading and closing run in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.errors import Misconfigured, ModelNotFound, Unavailable

log = logging.getLogger(__name__)


class Closable(Protocol):
    """What can be kept on a shelf."""

    def close(self) -> None: ...


E = TypeVar("E", bound=Closable)


class Limits(NamedTuple):
    """engines: kept at the same time; total_bytes: that they may take together; wait_s: for one that is loading."""

    engines: int = 1
    total_bytes: int | None = None
    wait_s: float = 300.0


@dataclass(eq=False, slots=True)
class _Copy(Generic[E]):
    engine: E
    size: int
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        self.users += 1
        self.unused.clear()

    def give(self) -> None:
        self.users -= 1
        if not self.users:
            self.unused.set()


class Shelf(Generic[E]):
    """Engines by the names of their models.

    size: bytes that a model will take; load: the engine. Both run in a thread, may be slow and may raise Misconfigured.
    """

    def __init__(
        self, names: Collection[str], size: Callable[[str], int], load: Callable[[str], E], limits: Limits
    ) -> None:
        self.names = tuple(names)
        self._size, self._load, self._limits = size, load, limits
        self._warm: dict[str, _Copy[E]] = {}  # the one that was asked for last at the end
        self._waiting: dict[str, list[asyncio.Future[_Copy[E]]]] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self.loads = self.evictions = 0

    def begin(self, name: str) -> E:
        """Load the first model, here and now."""
        copy = self._load_now(name, self._size_of(name))
        self._warm[name] = copy
        return copy.engine

    @asynccontextmanager
    async def borrowed(self, name: str) -> AsyncIterator[E]:
        """An engine, which stays as long as it is borrowed.

        Raises ModelNotFound, Misconfigured where it does not load, Unavailable where that takes too long.
        """
        copy = await self._take(name)
        try:
            yield copy.engine
        finally:
            copy.give()

    def preload(self, name: str) -> None:
        """Begin to load a model that may be asked for soon. What fails is logged, and tried again when asked for."""
        if name not in self._warm:
            self._start_loading(name)

    async def unload(self, name: str) -> None:
        """Put a model away as soon as nobody uses it; the next request loads it again."""
        if name in self._warm:
            await self._put_away(name)

    async def renew(self, name: str) -> None:
        """Load a model anew, because it shall be loaded otherwise; returns when that was tried.

        What runs on it ends on the old one; requests that come meanwhile wait. Nothing happens where it is not loaded.
        """
        while loading := self._loading.get(name):
            await asyncio.wait({loading})
        if name in self._warm:
            self._start_loading(name)
            await asyncio.wait({self._loading[name]})

    def warm(self) -> dict[str, E]:
        """Those that are loaded."""
        return {name: copy.engine for name, copy in self._warm.items()}

    def close(self) -> None:
        """Close all of them, whoever uses them."""
        self._closed = True
        warm, self._warm = self._warm, {}
        for copy in warm.values():
            copy.engine.close()

    async def _take(self, name: str) -> _Copy[E]:
        if name not in self.names:
            raise ModelNotFound(name, self.names)
        if copy := self._warm.pop(name, None):
            self._warm[name] = copy
            copy.take()
            return copy
        if self._closed:
            raise Unavailable(f"model '{name}'", "this replica ends")
        place: asyncio.Future[_Copy[E]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append(place)
        self._start_loading(name)
        try:
            async with asyncio.timeout(self._limits.wait_s):
                return await place
        except (TimeoutError, asyncio.CancelledError) as exc:
            self._withdraw(name, place)
            if isinstance(exc, TimeoutError):
                raise Unavailable(f"model '{name}'", "it is still being loaded", 5.0) from exc
            raise

    def _withdraw(self, name: str, place: "asyncio.Future[_Copy[E]]") -> None:
        if place.done() and not place.cancelled() and place.exception() is None:
            place.result().give()  # it came in the moment in which nobody wanted it any more
        elif place in self._waiting.get(name, ()):
            self._waiting[name].remove(place)

    def _start_loading(self, name: str) -> None:
        if name not in self._loading:
            self._loading[name] = asyncio.create_task(self._bring(name), name=f"load {name}")

    async def _bring(self, name: str) -> None:
        try:
            async with self._one_at_a_time:
                if name in self._warm:  # it is loaded anew
                    await self._put_away(name)
                size = await asyncio.to_thread(self._size_of, name)
                await self._make_room(size)
                copy = await asyncio.to_thread(self._load_now, name, size)
        except Exception as exc:  # noqa: BLE001 — it belongs to those that wait
            log.warning("Model '%s' does not load: %s", name, exc)
            self._tell(name, exc)
            return
        if self._closed:
            await asyncio.to_thread(copy.engine.close)
            self._tell(name, Unavailable(f"model '{name}'", "this replica ends"))
        else:
            self._warm[name] = copy
            self._tell(name, copy)

    def _tell(self, name: str, outcome: _Copy[E] | Exception) -> None:
        del self._loading[name]
        for place in self._waiting.pop(name, []):
            if place.done():
                continue
            if isinstance(outcome, Exception):
                place.set_exception(outcome)
            else:
                outcome.take()  # before anything else can put it away
                place.set_result(outcome)

    def _size_of(self, name: str) -> int:
        size, limit = self._size(name), self._limits.total_bytes
        if limit is not None and size > limit:
            problem = f"is {limit / 1e9:.2f} GB, the model '{name}' alone needs {size / 1e9:.2f} GB"
            raise Misconfigured("llm.memory_budget_bytes", problem, "Raise it, or use a smaller model or cache.")
        return size

    def _load_now(self, name: str, size: int) -> _Copy[E]:
        engine = self._load(name)
        self.loads += 1
        copy = _Copy(engine, size)
        copy.unused.set()
        return copy

    async def _make_room(self, size: int) -> None:
        limits = self._limits
        while self._warm and (
            len(self._warm) >= limits.engines
            or (limits.total_bytes is not None and sum(c.size for c in self._warm.values()) + size > limits.total_bytes)
        ):
            self.evictions += 1
            await self._put_away(next(iter(self._warm)))

    async def _put_away(self, name: str) -> None:
        copy = self._warm.pop(name)
        await copy.unused.wait()
        await asyncio.to_thread(copy.engine.close)
