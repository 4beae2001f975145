"""The LLM replica on vLLM: the same methods as deployments/llama_cpp.py, so that no gateway knows which engine answers.

Ray's own LLMServer is not used: docs/vllm.md says what it would cost. What Ray gives is used: autoscaling, routing by
prefix, queue bounds, and GPUs, all of them options of this deployment. vLLM is imported in the replica only.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import asyncpg

from app.desired import Desired
from app.errors import EngineFailed, InvalidRequest, ModelNotFound
from app.following import Follower
from app.llama.residency import Residency
from app.machine import Machine, machine
from app.messages import Delta, Done, Generate, Measure, ModelCard, ModelFile
from app.postgres import open_pool
from app.registry import Holdings, Registry
from app.settings import Secrets
from app.vllm import memory
from app.vllm.engine import Engine
from app.vllm.settings import LAYERS, VllmSettings
from app.vllm.source import locate, present, weights_bytes
from app.vllm.start import require_vllm

STAYS = "vLLM keeps all layers where it started; layers can be moved on llama.cpp only"


class Vllm:
    """Serves one model. home: where downloaded models and adapters are kept.

    follow: go by the desired state in PostgreSQL; else there is the bare model alone.
    Construction loads the model, and raises Misconfigured with the remedy.
    """

    _engine: Engine | None = None  # until the model is loaded

    def __init__(self, settings: VllmSettings, home: Path, *, follow: bool = False) -> None:
        self._settings, self._home, self._follow = settings, home, follow
        self._follower: Follower | None = None
        self._pool: asyncpg.Pool | None = None
        require_vllm()  # before minutes of download
        self._engine = self.engine = Engine(locate(settings.model, home), settings)
        self._residency = Residency(self.engine, home, settings.adapters)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answer: its first delta at once, further ones joined for `flush_s`, and one Done at the end.

        Closing the generator aborts it. Raises InvalidRequest, ContextTooLong, ModelNotFound, Overloaded, or
        Unavailable where its adapter does not load, before the first item; EngineFailed at any time.
        """
        self._require_known(request.model)
        if request.adapter is not None:
            await self._have_adapter(request.adapter)
        async with aclosing(self.engine.generate(request)) as items:
            async for item in items:
                yield item

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        """Token counts of the prompt that a request renders to, and of each text alone."""
        self._require_known(request.model)
        return await self.engine.measure(request, texts)

    async def card(self) -> ModelCard:
        """The model."""
        return self.engine.card()

    async def cards(self) -> tuple[ModelCard, ...]:
        """All models, of which there is one."""
        return (await self.card(),)

    async def files(self) -> tuple[ModelFile, ...]:
        """Where the model comes from. Downloads nothing."""
        return (await asyncio.to_thread(self._file),)

    async def machine(self) -> Machine:
        """How busy the machine of this replica is."""
        return await asyncio.to_thread(machine)

    async def load(self, name: str, adapter: str | None = None) -> None:
        """The model is loaded; have an adapter, too. Raises ModelNotFound, Unavailable."""
        self._require_known(name)
        if adapter is not None:
            await self._have_adapter(adapter)

    async def check_layers(self, name: str, layers: int) -> None:
        """Raise InvalidRequest where so many layers of the model cannot be on GPUs: it is all of them, always."""
        self._require_known(name)
        if layers != LAYERS:
            raise InvalidRequest(f"{STAYS}.", "value")

    async def stats(self) -> dict[str, float]:
        """Gauges and counters by name: see `app.vllm.engine.Stats`."""
        return self.engine.stats()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: vLLM's process has ended.

        Serve calls it soon after the start, and waits for it before it sends requests: adapters are loaded then.
        """
        if self._engine is None:
            raise EngineFailed("the replica is closed")
        self.engine.check()
        if self._follow and self._follower is None:
            await self._start_following()

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        self.close()

    def close(self) -> None:
        """Fail what is running and end vLLM. A second call does nothing."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if self._follower is not None:
            self._follower.abandon()
        if self._pool is not None:
            self._pool.terminate()
        engine.close()

    async def _start_following(self) -> None:
        url = Secrets.from_env().postgres_url
        self._pool = await open_pool(url.get_secret_value() if url else None, self._home)
        self._follower = Follower("engine", Registry(self._pool, self._home), self._converge)
        await self._follower.start()

    async def _converge(self, desired: Desired) -> Holdings:
        """Load the adapters that shall be loaded. Layers stay where they are, and operators are told so."""
        name = self._settings.name
        refused = STAYS if desired.control.layers.get(name, LAYERS) != LAYERS else ""
        wanted = (desired.adapter(name, version) for version in desired.of(name).resident)
        held = await self._residency.keep([adapter for adapter in wanted if adapter], desired.revision)
        return {name: held.model_copy(update={"layers": LAYERS, "refused": refused})}

    async def _have_adapter(self, version: str) -> None:
        name, follower = self._settings.name, self._follower
        found = follower.desired.adapter(name, version) if follower else None
        if follower and found is None:  # registered since we looked
            desired = await follower.refresh()
            found = desired.adapter(name, version)
        if found is None:
            known = follower.desired.names_of(name) if follower else ()
            raise ModelNotFound(f"{name}:{version}", (name, *known))
        await self._residency.have(found)

    def _require_known(self, model: str) -> None:
        name = self._settings.name
        if name not in (model, model.rpartition(":")[0]):
            raise ModelNotFound(model, (name,))

    def _file(self) -> ModelFile:
        settings, folder = self._settings, present(self._settings.model, self._home)
        return ModelFile(
            name=settings.name,
            source=settings.model,
            file=(folder or Path(settings.model)).name,
            exists=folder is not None,
            size=weights_bytes(folder) if folder else None,
            memory=sum(memory.need(folder, settings)) if folder else None,
            layers=LAYERS,
            description=settings.description,
            recommended=settings.recommended,
        )
