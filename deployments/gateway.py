"""The Gateway deployment: one port, every dialect. Holds the collaborators, and builds the application of the routes.

Stateless but for connections: any number of replicas may run. All of HTTP is here, in guard.py and in routes/.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.conversations import Conversations
from app.dialects import openai
from app.errors import MindFuError, ModelNotFound, Unavailable
from app.feedback import FeedbackStore
from app.following import Follower
from app.forgetting import Forgetting
from app.keyring import Keyring
from app.limits import Limiter
from app.messages import WELL, Generate, ModelCard, ModelFile
from app.recorder import Recorder
from app.registry import Registry
from app.responses import Responses
from app.runs import Runs
from app.sessions import Sessions
from app.settings import LLMSettings, Secrets, Settings
from app.shelves import Shelves
from app.trials import Trials
from app.uploads import Uploads
from app.vllm.settings import VllmSettings
from app.watching import Watch
from deployments.answering import Answering
from deployments.calls import call
from deployments.config import beyond_loopback, require_key_beyond_loopback
from deployments.guard import TOLD, Guard
from deployments.metrics import Metrics
from deployments.routes import (
    control,
    conversations,
    documents,
    files,
    fine_tuning,
    generation,
    messages,
    models,
    operations,
    refusals,
    responses,
    sessions,
    tools,
    training,
    vector_stores,
)
from deployments.shadowing import Shadows
from deployments.tooling import Tooling
from deployments.waking import Look, Sleeper, Standing, of_serve

HEALTH_TIMEOUT_S = 5.0
VERSION = version("mindfu")
UNLOADED = {"loaded": False, "adapters": ()}
log = logging.getLogger(__name__)


class Gateway:
    """Speaks HTTP for the graph. home: the folder of the embedded stores and of the spool."""

    answering: Answering
    recorder: Recorder
    conversations: Conversations
    responses: Responses
    sessions: Sessions
    shelves: Shelves
    uploads: Uploads
    feedback: FeedbackStore
    cards: dict[str, ModelCard]  # by name, the main one first
    _files: tuple[ModelFile, ...]  # in the same order
    registry: Registry
    follower: Follower
    runs: Runs
    forgetting: Forgetting
    trials: Trials
    watch: Watch
    keyring: Keyring
    limiter: Limiter
    embedder_name: str
    embedder_dimension: int

    def __init__(
        self,
        llm: DeploymentHandle,
        embedder: DeploymentHandle,
        retriever: DeploymentHandle,
        librarian: DeploymentHandle,
        settings: Settings,
        home: Path,
        tools: DeploymentHandle | None = None,
        trainer: DeploymentHandle | None = None,
        look: Look = of_serve,
    ) -> None:
        self.llm = Sleeper(llm, "language model", settings.gateway.wake_wait_s, look, greet=self._refresh)
        self.embedder, self.retriever, self.librarian = embedder, retriever, librarian
        self.settings, self.home, self.secrets = settings, home, Secrets.from_env()
        self.tools, self.tooling = tools, Tooling(tools, settings.tools, settings.rag)
        self.trainer = trainer
        self.metrics = Metrics(log_texts=settings.gateway.log_texts)
        self.started_at = int(time.time())
        self._named: tuple[object, tuple[str, ...]] = None, ()
        self._opened = AsyncExitStack()

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may put in `model`: every model, its bare base, its adapters; the main one's aliases."""
        desired, llm = self.follower.desired, self.settings.llm
        if self._named[0] is not desired:  # which is replaced as a whole
            self._named = desired, (*desired.names((llm.name, *llm.models)), *llm.aliases)
        return self._named[1]

    def served(self, model: str) -> str:
        """The name of what answers. Raises ModelNotFound."""
        if model not in self.names:
            raise ModelNotFound(model, self.names)
        return self.settings.llm.name if model in self.settings.llm.aliases else model

    def adapter(self, name: str, conversation: str | None = None) -> str | None:
        """The adapter version that answers for a served name in a conversation at this moment, None: the bare base."""
        root, suffix = self._parts(name)
        return self.follower.desired.answering(root, suffix, conversation)

    def shadow(self, name: str, conversation: str | None) -> str | None:
        """The adapter version that is to be asked the same again, for nobody to see."""
        root, suffix = self._parts(name)
        return None if suffix else self.follower.desired.trying(root, "shadow", conversation)

    def _parts(self, name: str) -> tuple[str, str]:
        root, served = self.root(name), self.served(name)
        return root, served.removeprefix(root).removeprefix(":")

    @property
    def current(self) -> str:
        """The name that /chat and /generate ask: what operators chose, if that is still served, else the main model."""
        chosen = self.follower.desired.control.model
        return self.served(chosen) if chosen in self.names else self.settings.llm.name

    @property
    def system_prompt(self) -> str:
        """Of /chat and /generate, where a request has none."""
        chosen = self.follower.desired.control.system_prompt
        return self.settings.chat.system_prompt if chosen is None else chosen

    def layers(self, name: str) -> int:
        """Of the model behind a served name, on GPUs; -1 is all."""
        root = self.root(name)
        return self.follower.desired.control.layers.get(root, self.settings.llm.of(root).gpu_layers)

    def fingerprint(self, request: Generate, adapter: str | None) -> str:
        """What answers this request: see `openai.fingerprint`."""
        return _fingerprint(self.cards[self.root(request.model)], adapter)

    def root(self, name: str) -> str:
        """The model behind a name that is served."""
        served = self.served(name)
        return served if served in self.cards else served.rpartition(":")[0]

    async def look(self) -> None:
        """See which models are loaded. While the engine does not answer or is let sleep, what was seen last stands."""
        with suppress(TimeoutError, MindFuError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                if self._may_ask(await self._standing()):
                    await self._refresh()

    async def _standing(self) -> Standing:
        """Of the language model, whose cards say so. Where Serve's controller says nothing, it is taken for one that is
        always there.
        """
        try:
            standing = await self.llm.standing()
        except (TimeoutError, RayError, RayServeException) as error:
            log.warning("Serve does not say how many replicas there are: %s", error)
            return Standing(running=1)
        if standing.sleeps and not standing.running:
            self.cards = {name: card.model_copy(update=UNLOADED) for name, card in self.cards.items()}
        return standing

    def _may_ask(self, standing: Standing) -> bool:
        """Whether the engine may be asked what nobody needs: one that may sleep, only while people ask it, too."""
        return not standing.sleeps or bool(standing.running and self.llm.asked)

    async def files(self) -> tuple[ModelFile, ...]:
        """Where the models come from. Of one that may sleep what was seen last; at first, what settings say."""
        if self._may_ask(await self._standing()):
            self._files = await call("language model", self.llm.handle, "files")
        return self._files

    async def _refresh(self) -> None:
        cards: tuple[ModelCard, ...] = await call("language model", self.llm.handle, "cards")
        self.cards = {card.name: card for card in cards}

    async def health(self) -> dict[str, Any]:
        """The state of every part, and `degraded` as soon as one of them does not answer."""
        handles = (
            {"embedder": self.embedder, "retriever": self.retriever, "librarian": self.librarian}
            | ({"tools": self.tools} if self.tools else {})
            | ({"trainer": self.trainer} if self.trainer else {})
        )
        (llm, stage), *states = await asyncio.gather(
            self._llm_state(), *(self._state(part, handle) for part, handle in handles.items())
        )
        parts = {"llm": llm, **dict(zip(handles, states, strict=True)), "postgres": await self.recorder.state()}
        away = ", ".join(f"{part}: {state}" for part, state in parts.items() if state not in WELL)
        return {
            "status": "degraded" if away else "ok",
            "message": away or stage or "every part answers",
            "model_key": self.current,
            "model": self.cards[self.settings.llm.name].model_dump(),
            "parts": parts,
            "training": await self._training(),
            "spooled_turns": self.recorder.pending(),
            "version": VERSION,
        }

    async def readings(self) -> bytes:
        """The Prometheus page. Without a part's gauges while it does not answer: `engine_up` says so. One that may
        sleep is not asked for them while nobody else asks it: each replica publishes them through Ray all the same.
        """
        standing = await self._standing()
        engine, librarian, adapters, training = await asyncio.gather(
            self._engine_stats(standing),
            self._stats("librarian", self.librarian),
            self._adapters(),
            self._training(),
        )
        readings = {f"engine_{name}": value for name, value in engine.items()}
        readings |= {f"librarian_{name}": value for name, value in librarian.items()}
        up = bool(engine) or (standing.sleeps and not standing.trouble and not self._may_ask(standing))
        readings |= {"engine_up": float(up), "spooled_turns": self.recorder.pending()}
        readings |= {"engine_replicas": standing.running, "engine_replicas_starting": standing.starting}
        readings |= {"training_running": float(training is not None)}
        if training and training.get("total"):
            readings["training_stage_done"] = training["done"] / training["total"]  # of the stage that runs
        return self.metrics.page(readings, adapters)

    async def _engine_stats(self, standing: Standing) -> dict[str, float]:
        return await self._stats("language model", self.llm.handle) if self._may_ask(standing) else {}

    async def _stats(self, part: str, handle: DeploymentHandle) -> dict[str, float]:
        with suppress(TimeoutError, MindFuError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                stats: dict[str, float] = await call(part, handle, "stats")
                return stats
        return {}

    async def _adapters(self) -> list[tuple[str, str]]:
        """Model and version of each adapter, once for every engine of the cluster that holds it."""
        with suppress(TimeoutError, MindFuError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                models = [member.models for member in await self.registry.members()]
                return [(name, version) for held in models for name in held for version in held[name].loaded]
        return []

    async def _training(self) -> dict[str, Any] | None:
        """The training run that is worked on; None: none is, or nobody can tell."""
        with suppress(Unavailable):
            run = await self.recorder.read(self.runs.running())
            if run is not None:
                told = run.progress.model_dump() if run.progress else {}
                return {"run": run.id, "stage": None, **told, "gpus_lent": run.result.get("gpus_lent", False)}
        return None

    async def _llm_state(self) -> tuple[str, str]:
        """`ok`, `asleep`, `starting`, or what is wrong; and for people how far it is, empty where it answers."""
        standing = await self._standing()
        if self._may_ask(standing):
            return await self._state("llm", self.llm.handle), ""
        if standing.trouble:
            return standing.trouble, ""
        stage = "asleep, and woken by the next request" if standing.state == "asleep" else standing.stage
        return standing.state, "" if standing.running else f"the language model is {stage}"

    async def _state(self, part: str, handle: DeploymentHandle) -> str:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await call(part, handle, "check_health")
        except TimeoutError:
            return f"no answer within {HEALTH_TIMEOUT_S:.0f} s"
        except Exception as exc:  # noqa: BLE001 - the state is the report: every failure belongs in it
            log.warning("%s is not healthy: %s", part, exc)
            return str(exc) if isinstance(exc, MindFuError) else type(exc).__name__
        return "ok"

    def shutdown(self) -> None:
        """Take the whole application down, this process too: what runs may end first. Returns at once."""
        _get_global_client().delete_apps([serve.get_replica_context().app_name], blocking=False)

    @asynccontextmanager
    async def open(self, host: str) -> AsyncIterator[None]:
        """Connected to the stores. host: the address that is listened on. Raises Misconfigured, Unavailable."""
        require_key_beyond_loopback(host, self.secrets, self.home)
        models = [self.settings.llm.of(name) for name in (self.settings.llm.name, *self.settings.llm.models)]
        self.cards = {one.name: ModelCard.unseen(one.name, one.window) for one in models}
        self._files = tuple(map(_file, models))
        if self._may_ask(await self._standing()):
            await self._refresh()
        self.embedder_name, self.embedder_dimension = await call("embedder", self.embedder, "card")
        postgres_url = self.secrets.postgres_url
        async with Recorder.open(postgres_url.get_secret_value() if postgres_url else None, self.home) as recorder:
            self.recorder, self.conversations = recorder, recorder.conversations
            self.responses = Responses(recorder.pool)
            self.shelves, self.uploads = Shelves(recorder.pool), Uploads(recorder.pool)
            self.sessions = Sessions(recorder.pool)
            self.feedback = FeedbackStore(recorder.pool)
            timeout_s = self.settings.gateway.answer_timeout_s
            self.keyring = Keyring(
                recorder.pool,
                self.home,
                api_key=self.secrets.api_key,
                pepper=self.secrets.key_pepper,
                required=beyond_loopback(host),
            )
            self.limiter = Limiter(recorder.pool, timeout_s)
            self.registry = Registry(recorder.pool, self.home)
            self.runs, self.forgetting = Runs(recorder.pool), Forgetting(recorder.pool)
            self.trials = Trials(recorder.pool)
            self.watch = Watch(self.registry, self.trials, self.settings.watch)
            self.follower = Follower("gateway", self.registry)
            await self.follower.start()
            self.answering = Answering(
                self.llm, self.retriever, recorder, self.settings.rag, timeout_s, self.metrics, self.limiter,
                adapter=self.adapter, shadows=Shadows(self.llm, self.trials, self.shadow, timeout_s, self.metrics),
            )  # fmt: skip
            watching = asyncio.create_task(self._watch(), name="watch what is new")
            telling = asyncio.create_task(self.metrics.tell_forever(), name="tell Ray what was counted")
            try:
                yield
            finally:
                watching.cancel()
                telling.cancel()
                await asyncio.gather(watching, telling, return_exceptions=True)
                await self.follower.close()
                await self.answering.close()

    async def _watch(self) -> None:
        """Take back what does worse than what it replaced, as long as the gateway is open."""
        while self.settings.watch.enabled:
            await asyncio.sleep(self.settings.watch.every_s)
            try:
                await self.watch.look(self.follower.desired)
            except Unavailable:
                continue  # nothing can be said, and nobody can be told
            except Exception:  # the loop's edge: the next look must not be missed
                log.exception("looking at what is new failed")

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async with self._opened:
            yield

    async def __serve_build_asgi_app__(self) -> FastAPI:
        # Opened here and closed by the lifespan: Serve shows what fails here, and hides in a log what fails there.
        host = _get_global_client().http_config.host
        await self._opened.enter_async_context(self.open(host))
        return self.application()

    def application(self) -> FastAPI:
        """Every route behind the guard, and before it what lets web pages call. Only while it is open."""
        told = Security(HTTPBearer(auto_error=False))  # so that /docs asks for a key; the guard is who checks it
        app = FastAPI(title="MindFu", version=VERSION, lifespan=self._lifespan, dependencies=[told])
        app.add_middleware(
            Guard,
            keyring=self.keyring,
            limiter=self.limiter,
            origins=self.settings.gateway.cors_origins,
            max_body=self.settings.gateway.max_body_bytes,
            max_upload=self.settings.documents.max_bytes,
            metrics=self.metrics,
        )
        if origins := self.settings.gateway.cors_origins:  # outside of the guard: a preflight has no key
            app.add_middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=TOLD,
            )
        refusals.register(app)
        groups = (
            *(
                generation,
                messages,
                responses,
                documents,
                files,
                vector_stores,
                training,
                fine_tuning,
                tools,
                conversations,
                models,
                operations,
            ),
            *(sessions, control),
        )
        for group in groups:
            app.include_router(group.routes(self))
        return app


@lru_cache(256)
def _fingerprint(card: ModelCard, adapter: str | None) -> str:
    return openai.fingerprint(card.model_copy(update={"loaded": True, "adapters": ()}), adapter, VERSION)


def _file(settings: LLMSettings | VllmSettings) -> ModelFile:
    """Of a model without a replica, and so without a machine to look at."""
    return ModelFile(
        name=settings.name,
        source=settings.model,
        file=Path(settings.model).name,
        exists=False,
        size=None,
        memory=None,
        layers=settings.gpu_layers,
        description=settings.description,
        recommended=settings.recommended,
    )
