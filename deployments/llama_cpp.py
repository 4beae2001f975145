"""The LLM replica on llama.cpp: engines whose requests are decoded together. A plain class, without Ray.

Which adapters it has loaded, and how many layers are on GPUs, follows the desired state of serving (app/following.py),
from its first health check on, which Serve waits for before it sends requests.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import asyncpg

from app.desired import Desired
from app.errors import Conflict, EngineFailed, InvalidRequest, Misconfigured, ModelNotFound
from app.following import Follower, find_adapter
from app.llama import devices, memory
from app.llama.engine import SMALL_BYTES, Engine
from app.llama.probe import probe
from app.llama.residency import Residency
from app.llama.shelf import Limits, Shelf
from app.llama.source import DEMO_FILE, locate, present
from app.machine import Machine, machine
from app.messages import Delta, Done, Generate, Measure, ModelCard, ModelFile
from app.postgres import open_pool
from app.registry import Holding, Holdings, Registry
from app.settings import LLMSettings, Secrets

log = logging.getLogger(__name__)


class Refused(NamedTuple):
    """Layers that a model does not load with, and why."""

    layers: int
    reason: str


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
        self._own_layers = {name: own.gpu_layers for name, own in self._of.items()}
        self._before: dict[str, LLMSettings] = {}  # what a model that is loaded anew was loaded with
        self._refused: dict[str, Refused] = {}
        self._reloading: dict[str, asyncio.Task[None]] = {}
        self._wanted: str | None = None  # the model that operators chose last
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
            if request.adapter is not None:  # behind this, nothing is awaited until the engine holds it
                await self._have_adapter(engine, self._known(request.model), request.adapter)
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

    async def files(self) -> tuple[ModelFile, ...]:
        """Where the models come from, in the order of `cards`. Downloads nothing."""
        return await asyncio.to_thread(lambda: tuple(map(self._file, self._of)))

    async def machine(self) -> Machine:
        """How busy the machine of this replica is."""
        return await asyncio.to_thread(machine)

    async def load(self, name: str, adapter: str | None = None) -> None:
        """Load a model now, and return when it is there. Raises Conflict where its settings or its file do not do."""
        name = self._known(name)
        try:
            async with self.shelf.borrowed(name) as engine:
                if adapter is not None:
                    await self._have_adapter(engine, name, adapter)
        except Misconfigured as error:
            raise Conflict(f"{name} cannot be loaded. {error}") from error

    async def check_layers(self, name: str, layers: int) -> None:
        """Raise InvalidRequest where this replica could not have so many layers of a model on GPUs: it has none."""
        try:
            devices.chosen(_placed(self._of[self._known(name)], layers))
        except Misconfigured as error:
            raise InvalidRequest(str(error), "value") from error

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
        self._place(desired.control.layers)
        self._prefer(desired.control.model)
        holdings = {name: Holding(layers=self._before[name].gpu_layers) for name in self._reloading}
        for name in self.shelf.warm():
            if name in self.shelf.warm():  # still, after the one before
                async with self.shelf.borrowed(name) as engine:
                    wanted = (desired.adapter(name, version) for version in desired.of(name).resident)
                    kept = [adapter for adapter in wanted if adapter]
                    held = await self._residency(engine).keep(kept, desired.revision)
                if name not in self._reloading:
                    holdings[name] = held.model_copy(update=self._layers_of(name))
        return holdings

    def _place(self, layers: Mapping[str, int]) -> None:
        """Have models loaded anew whose layers shall be elsewhere."""
        for name, own in self._own_layers.items():
            wanted = layers.get(name, own)
            refused = self._refused.get(name)
            if refused and refused.layers != wanted:
                del self._refused[name]
            if wanted == self._of[name].gpu_layers or name in self._reloading or name in self._refused:
                continue
            self._before[name] = self._of[name]
            self._reloading[name] = asyncio.create_task(self._reload(name, wanted), name=f"load {name} anew")

    async def _reload(self, name: str, layers: int) -> None:
        try:
            self._of[name] = _placed(self._before[name], layers)
            await self.shelf.renew(name)
        finally:
            del self._reloading[name]
            self._before.pop(name, None)
            if self._follower:
                self._follower.wake()

    def _prefer(self, model: str | None) -> None:
        """Have the model at hand that operators chose, once: whoever asks for another one afterwards gets that."""
        if model != self._wanted and model is not None:
            for name in {model, model.rpartition(":")[0]} & self._of.keys():
                self.shelf.preload(name)
        self._wanted = model

    def _layers_of(self, name: str) -> dict[str, int | str]:
        refused = self._refused.get(name)
        return {"layers": self._of[name].gpu_layers, "refused": refused.reason if refused else ""}

    async def _have_adapter(self, engine: Engine, name: str, version: str) -> None:
        await self._residency(engine).have(await find_adapter(self._follower, name, version))

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
        unknown = ModelCard.unseen(name, self._of[name].window)
        held = {"loaded": bool(engine), "adapters": engine.adapters() if engine else ()}
        return self._cards.get(name, unknown).model_copy(update=held)

    def _size(self, name: str) -> int:
        settings = self._of[name]
        return memory.need(locate(settings.model, self._home), settings).total

    def _load(self, name: str) -> Engine:
        """With other layers than before, or with those where that fails: requests wait, and operators are told."""
        wanted, before = self._of[name], self._before.get(name)
        path = locate(wanted.model, self._home)
        try:
            return Engine(path, wanted)
        except Misconfigured as error:
            if before is None or before is wanted:
                raise
            log.warning("'%s' goes on with %d layers on GPUs. %s", name, before.gpu_layers, error)
            self._refused[name] = Refused(wanted.gpu_layers, str(error))
            self._of[name] = before
            return Engine(path, before)

    def _file(self, name: str) -> ModelFile:
        settings = self._of[name]
        path = present(settings.model, self._home)
        try:
            needed = memory.need(path, settings).total if path else None
        except (Misconfigured, OSError):
            needed = None
        return ModelFile(
            name=name,
            source=settings.model,
            file=(path or Path(settings.model)).name,
            exists=path is not None,
            size=path.stat().st_size if path else None,
            memory=needed,
            layers=settings.gpu_layers,
            description=settings.description,
            recommended=settings.recommended,
        )


def _placed(settings: LLMSettings, layers: int) -> LLMSettings:
    """With other layers on GPUs. Without any, which GPUs they would be on says nothing."""
    nowhere = {"gpus": None, "gpu_split": None} if layers == 0 else {}
    return settings.model_copy(update={"gpu_layers": layers, **nowhere})
