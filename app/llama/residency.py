"""The adapters that one engine has loaded: those that the desired state keeps ready, and some that were asked for.

An adapter that a request names is loaded before its answer begins, whatever this engine knew of it until then: so it
does not matter whether a gateway or an engine hears of a promotion first.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from app.desired import Adapter
from app.errors import EngineFailed, InvalidRequest, ModelNotFound, Unavailable
from app.registry import Holding, digest


class Wearer(Protocol):
    """What adapters are loaded into: the Engine of app.llama or of app.vllm."""

    def adapters(self) -> tuple[str, ...]: ...
    async def load_adapter(self, name: str, path: Path) -> None: ...
    async def unload_adapter(self, name: str) -> None: ...


class Residency:
    """Keeps the adapters of one engine. home: of relative paths; spare: how many stay that were only asked for."""

    def __init__(self, engine: Wearer, home: Path, spare: int) -> None:
        self._engine, self._home, self._spare = engine, home, spare
        self._kept: tuple[str, ...] = ()
        self._failed: dict[str, str] = {}
        self._revision = -1  # for which they failed
        self._asked: dict[str, None] = {}  # the one that was asked for last at the end
        self._one_at_a_time = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def keep(self, adapters: Iterable[Adapter], revision: int) -> Holding:
        """Load these, and let those go that were kept before and nobody asked for lately. Says what does not load.

        What does not load is tried again for the next revision of the desired state, and for who asks for it.
        """
        adapters = tuple(adapters)
        self._kept = tuple(adapter.version for adapter in adapters)
        if revision != self._revision:
            self._revision, self._failed = revision, {}
        for adapter in adapters:
            if adapter.version not in self._failed:
                try:
                    await self.have(adapter)
                except Unavailable as error:
                    self._failed[adapter.version] = error.reason
        self._make_room()
        loaded = self._engine.adapters()
        return Holding(loaded=loaded, failed={v: why for v, why in self._failed.items() if v not in loaded})

    async def have(self, adapter: Adapter) -> None:
        """Have an adapter loaded when this returns. Raises Unavailable with the reason where it does not load."""
        while adapter.version not in self._engine.adapters():
            async with self._one_at_a_time:
                if adapter.version not in self._engine.adapters():
                    await self._load(adapter)
        self._asked.pop(adapter.version, None)
        self._asked[adapter.version] = None

    async def _load(self, adapter: Adapter) -> None:
        file = self._home / adapter.path
        try:
            found, _ = await asyncio.to_thread(digest, file)
            if found != adapter.sha256:
                problem = f"{file} was changed after it had been registered."
                raise InvalidRequest(problem, "path")
            await self._engine.load_adapter(adapter.version, file)
        except InvalidRequest as error:
            raise Unavailable(f"adapter '{adapter.name}'", str(error).rstrip(".")) from error
        self._asked[adapter.version] = None
        self._make_room()

    def _make_room(self) -> None:
        loaded = self._engine.adapters()
        spare = [version for version in self._asked if version in loaded and version not in self._kept]
        for version in spare[: max(0, len(spare) - self._spare)]:
            del self._asked[version]
            task = asyncio.create_task(self._unload(version), name=f"unload adapter {version}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unload(self, version: str) -> None:
        with suppress(ModelNotFound, EngineFailed):  # somebody was faster, or the engine ends
            await self._engine.unload_adapter(version)
