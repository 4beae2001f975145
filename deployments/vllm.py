"""The LLM replica on vLLM: the same methods as deployments/llama_cpp.py, so that no gateway knows which engine answers.

Ray's own LLMServer is not used: docs/vllm.md says what it would cost. What Ray gives is used: autoscaling, routing by
prefix, queue bounds, and GPUs, all of them options of this deployment. vLLM is imported in the replica only.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import asyncpg

from app.desired import Desired
from app.errors import EngineFailed, InvalidRequest, Misconfigured, ModelNotFound, Unavailable
from app.following import Follower, find_adapter
from app.llama.residency import Residency
from app.machine import Machine, machine
from app.messages import Delta, Done, Generate, Measure, ModelCard, ModelFile
from app.postgres import open_pool
from app.registry import Holding, Holdings, Registry
from app.settings import Secrets
from app.vllm import memory
from app.vllm.engine import Engine
from app.vllm.settings import LAYERS, VllmSettings
from app.vllm.source import locate, present, weights_bytes
from app.vllm.start import require_vllm

logger = logging.getLogger(__name__)

NONE = 0  # layers: the GPUs are free, and nobody answers
AGAIN_S = 30.0  # after which to ask again
AWAY = "its GPUs are lent (to a training run, or by /command layers 0), and vLLM cannot answer without them"
STAYS = "vLLM has all layers on its GPUs (-1), or none and does not answer (0); some can be moved on llama.cpp only"


class Vllm:
    """Serves one model. home: where downloaded models and adapters are kept.

    follow: go by the desired state in PostgreSQL; else there is the bare model alone.
    Construction loads the model, and raises Misconfigured with the remedy.
    """

    _engine: Engine | None = None  # until the model is loaded, and while its GPUs are lent
    _layers = LAYERS  # as they are
    _moving: asyncio.Task[None] | None = None  # changes them
    _failed = (-1, "")  # the revision for which vLLM did not start again, and why
    _broken = ""  # why this replica is to be replaced
    _follower: Follower | None = None
    _pool: asyncpg.Pool | None = None
    _closed = False

    def __init__(self, settings: VllmSettings, home: Path, *, follow: bool = False) -> None:
        self._settings, self._home, self._follow = settings, home, follow
        require_vllm()  # before minutes of download
        self._started()
        self._card = self.engine.card()

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

    @property
    def engine(self) -> Engine:
        """The one that answers. Raises Unavailable while its GPUs are lent, EngineFailed where it stays away."""
        if self._broken:
            raise EngineFailed(self._broken)
        if self._engine is None:
            raise Unavailable("language model", AWAY, AGAIN_S)
        return self._engine

    async def card(self) -> ModelCard:
        """The model."""
        return self._card if self._engine is None else self._engine.card()

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
        """Raise InvalidRequest where so many layers of the model cannot be on GPUs: it is all of them or none."""
        self._require_known(name)
        if layers not in {LAYERS, NONE}:
            raise InvalidRequest(f"{STAYS}.", "value")

    async def stats(self) -> dict[str, float]:
        """Gauges and counters by name: see `app.vllm.engine.Stats`."""
        return {} if self._engine is None else self._engine.stats()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: vLLM's process has ended.

        Serve calls it soon after the start, and waits for it before it sends requests: adapters are loaded then.
        """
        if self._closed:
            raise EngineFailed("the replica is closed")
        if self._broken:
            raise EngineFailed(self._broken)
        if self._engine is not None:
            self._engine.check()
        if self._follow and self._follower is None:
            await self._start_following()

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        self.close()

    def close(self) -> None:
        """Fail what is running and end vLLM. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._moving is not None:
            self._moving.cancel()
        if self._follower is not None:
            self._follower.abandon()
        if self._pool is not None:
            self._pool.terminate()
        if self._engine is not None:
            self._engine.close()

    async def _start_following(self) -> None:
        url = Secrets.from_env().postgres_url
        self._pool = await open_pool(url.get_secret_value() if url else None, self._home)
        self._follower = Follower("engine", Registry(self._pool, self._home), self._converge)
        await self._follower.start()

    async def _converge(self, desired: Desired) -> Holdings:
        """Load the adapters that shall be loaded; free the GPUs, or take them again. Tells what is so by now."""
        name = self._settings.name
        layers = desired.control.layers.get(name, LAYERS)
        failed_at, reason = self._failed
        refused = STAYS if layers not in {LAYERS, NONE} else reason if failed_at == desired.revision else ""
        if not (refused or self._broken) and layers != self._layers and self._moving is None:
            self._moving = asyncio.create_task(self._move(layers, desired.revision), name="vLLM and its GPUs")
        told = {"layers": self._layers, "refused": refused}
        if self._engine is None or self._moving is not None:
            return {name: Holding(**told)}
        wanted = (desired.adapter(name, version) for version in desired.of(name).resident)
        held = await self._residency.keep([adapter for adapter in wanted if adapter], desired.revision)
        return {name: held.model_copy(update=told)}

    async def _move(self, layers: int, revision: int) -> None:
        """End vLLM as soon as what it answers is complete, or start it again, which takes as long as the first time."""
        try:
            if layers == NONE and self._engine is not None:
                engine, self._card, self._engine = self._engine, self._engine.card(), None
                await engine.idle()
                await asyncio.to_thread(engine.close)
            elif layers == LAYERS:
                await asyncio.to_thread(self._started)
            self._layers = layers
        except Misconfigured as error:
            self._failed = (revision, str(error))
        except Exception as error:  # whatever it is, a new process may do better
            logger.exception("vLLM and its GPUs")
            self._broken = f"vLLM did not end, or did not start again: {error!r}"
        finally:
            self._moving = None
            if self._follower is not None:
                self._follower.wake()

    def _started(self) -> None:
        engine = Engine(locate(self._settings.model, self._home), self._settings)
        self._residency = Residency(engine, self._home, self._settings.adapters)
        self._engine = engine

    async def _have_adapter(self, version: str) -> None:
        await self._residency.have(await find_adapter(self._follower, self._settings.name, version))

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
            layers=self._layers,
            description=settings.description,
            recommended=settings.recommended,
        )
