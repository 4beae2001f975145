"""The LLM replica on llama.cpp: engines whose requests are decoded together. A plain class, without Ray.

Which adapters it has loaded follows the desired state of serving (app/following.py), from its first health check on,
which Serve waits for before it sends requests.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from weakref import WeakKeyDictionary

import asyncpg

from app.desired import Desired
from app.errors import EngineFailed, ModelNotFound
from app.following import Follower
from app.llama import memory
from app.llama.engine import SMALL_BYTES, Engine
from app.llama.probe import probe
from app.llama.residency import Residency
from app.llama.shelf import Limits, Shelf
from app.llama.source import DEMO_FILE, locate
from app.messages import Delta, Done, Generate, Measure, ModelCard
from app.postgres import open_pool
from app.registry import Holdings, Registry
from app.settings import LLMSettings, Secrets


class LlamaCpp:
    """Serves the main GGUF, and further ones on demand. home: where downloaded models and adapters are kept.

    follow: go by the desired state in PostgreSQL; else there are the bare models alone.
    Construction loads the main model, after a trial in a child process, and raises Misconfigured with the remedy. The
    trial takes a large model's place by the demo model: it is the build that is tried, and loading twice is dear.
    """

    _shelf: Shelf[Engine] | None = None  # until the first model is loaded

    def __init__(self, settings: LLMSettings, home: Path, *, follow: bool = False) -> None:
        self._settings, self._home, self._follow = settings, home, follow
        self._follower: Follower | None = None
        self._pool: asyncpg.Pool | None = None
        self._residencies = WeakKeyDictionary[Engine, Residency]()
        self._of = {name: settings.of(name) for name in (settings.name, *settings.models)}
        self._cards: dict[str, ModelCard] = {}  # of those that were loaded once
        path = locate(settings.model, home)
        probe(path if path.stat().st_size < SMALL_BYTES else DEMO_FILE)
        limits = Limits(settings.warm, settings.memory_budget_bytes, settings.load_wait_s)
        shelf = Shelf(tuple(self._of), self._size, self._load, limits)
        shelf.begin(settings.name)
        self._shelf = self.shelf = shelf
        self._stocked = False

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answer: its first delta at once, further ones joined for `flush_s`, and one Done at the end.

        Closing the generator frees the slot. Raises InvalidRequest, ContextTooLong, ModelNotFound, Overloaded, or
        Unavailable where its model or adapter does not load, before the first item; EngineFailed at any time.
        """
        async with self._engine(request) as engine:
            await self._have_adapter(engine, request)  # and nothing is awaited until the engine holds it
            async with aclosing(engine.generate(request)) as items:
                async for item in items:
                    yield item

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        """Token counts of the prompt that a request renders to, and of each text alone."""
        async with self._engine(request) as engine:
            return await engine.measure(request, texts)

    async def card(self) -> ModelCard:
        """The main model."""
        return self._card(self._settings.name)

    async def cards(self) -> tuple[ModelCard, ...]:
        """All models, the main one first."""
        return tuple(map(self._card, self._of))

    async def load(self, name: str) -> None:
        """Load a model now, and return when it is there. Raises what a request for it would."""
        async with self.shelf.borrowed(name):
            pass

    async def unload(self, name: str) -> None:
        """Free a model as soon as its requests are answered; the next one loads it again. Raises ModelNotFound."""
        self._known(name)
        await self.shelf.unload(name)

    async def stats(self) -> dict[str, float]:
        """Gauges and counters by name, summed over the models that are loaded: see `app.llama.steps.Stats`."""
        shelf, totals = self.shelf, defaultdict[str, float](float)
        for engine in shelf.warm().values():
            for name, value in asdict(engine.stats()).items():
                totals[name] += value
        models = {"models_warm": len(shelf.warm()), "model_loads": shelf.loads, "model_evictions": shelf.evictions}
        return {**totals, **models}

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: a step loop has ended, or hangs.

        Serve calls it soon after the start, on every replica: further models begin to load then, as many as stay warm.
        """
        if self._shelf is None:
            raise EngineFailed("the replica is closed")
        for engine in self.shelf.warm().values():
            engine.check()
        if not self._stocked:
            self._stocked = True
            for name in list(self._settings.models)[: self._settings.warm - 1]:
                self.shelf.preload(name)
            if self._follow:
                await self._start_following()

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        self.close()

    def close(self) -> None:
        """Fail what is running and free the models. A second call does nothing."""
        shelf, self._shelf = self._shelf, None
        if self._follower is not None:
            self._follower.abandon()
        if self._pool is not None:
            self._pool.terminate()
        if shelf is not None:
            shelf.close()

    async def _start_following(self) -> None:
        url = Secrets.from_env().postgres_url
        self._pool = await open_pool(url.get_secret_value() if url else None, self._home)
        self._follower = Follower("engine", Registry(self._pool, self._home), self._converge)
        await self._follower.start()

    async def _converge(self, desired: Desired) -> Holdings:
        """Load what shall be loaded, in every engine that there is; the others follow when they are."""
        holdings = {}
        for name in self.shelf.warm():
            if name in self.shelf.warm():  # still, after the one before
                async with self.shelf.borrowed(name) as engine:
                    wanted = (desired.adapter(name, version) for version in desired.of(name).resident)
                    kept = [adapter for adapter in wanted if adapter]
                    holdings[name] = await self._residency(engine).keep(kept, desired.revision)
        return holdings

    async def _have_adapter(self, engine: Engine, request: Generate) -> None:
        if request.adapter is None:
            return
        name, version, follower = self._known(request.model), request.adapter, self._follower
        found = follower.desired.adapter(name, version) if follower else None
        if follower and found is None:  # registered since we looked
            desired = await follower.refresh()
            found = desired.adapter(name, version)
        if found is None:
            known = follower.desired.names_of(name) if follower else ()
            raise ModelNotFound(f"{name}:{version}", (name, *known))
        await self._residency(engine).have(found)

    def _residency(self, engine: Engine) -> Residency:
        return self._residencies.setdefault(engine, Residency(engine, self._home, self._settings.adapters))

    @asynccontextmanager
    async def _engine(self, request: Generate) -> AsyncIterator[Engine]:
        async with self.shelf.borrowed(self._known(request.model)) as engine:
            yield engine

    def _known(self, model: str) -> str:
        """The model behind a name that a request may send: its own, or with what is served of it: `name:base`."""
        for name in (model, model.rpartition(":")[0]):
            if name in self._of:
                return name
        raise ModelNotFound(model, tuple(self._of))

    def _card(self, name: str) -> ModelCard:
        engine = self.shelf.warm().get(name)
        if engine:
            self._cards[name] = engine.card()
        unknown = ModelCard(
            name=name, window=self._of[name].window, parameters=None, file_bytes=None, description="not loaded yet"
        )
        held = {"loaded": bool(engine), "adapters": engine.adapters() if engine else ()}
        return self._cards.get(name, unknown).model_copy(update=held)

    def _size(self, name: str) -> int:
        settings = self._of[name]
        return memory.need(locate(settings.model, self._home), settings).total

    def _load(self, name: str) -> Engine:
        settings = self._of[name]
        return Engine(locate(settings.model, self._home), settings)
