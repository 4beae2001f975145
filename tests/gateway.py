"""The whole gateway in this process: every route behind the guard, over real stores and a real librarian.

    async with whole(home, postgres_url) as gateway:
        async with gateway.http(key) as http: ...

Stand-ins are the model, which says what it was asked, and the embedder, which counts words.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.errors import InvalidRequest
from app.keys import Keys, Limits, Scope, pepper
from app.machine import Machine, machine
from app.messages import Delta, Done, End, Generate, Measure, ModelCard, ModelFile, Timings, Usage
from app.settings import Settings
from app.vectors import Floats, Space
from deployments.gateway import Gateway
from deployments.librarian import Librarian
from deployments.retriever import Retriever
from deployments.tools import Tools
from deployments.vector_store import VectorStore
from deployments.waking import Look, Standing

MODEL, WINDOW, DIMENSION = "mindfu-demo", 2048, 64


class Local:
    """A part that runs in this process, called as a deployment is."""

    def __init__(self, part: object) -> None:
        self._part = part

    def options(self, *, stream: bool) -> "Local":
        assert stream
        return LocalStreams(self._part)

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._part, method))


class LocalStreams(Local):
    """One that is called for streams."""

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: LocalStream(getattr(self._part, method)(*args)))


class LocalStream:
    """The items of a generator; `cancel` closes it, as Ray does."""

    def __init__(self, items: AsyncGenerator[Any]) -> None:
        self._items = items
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> "LocalStream":
        return self

    async def __anext__(self) -> object:
        return await anext(self._items)

    def cancel(self) -> None:
        self._closing = asyncio.create_task(self._items.aclose())


class Echo:
    """A model that says what it was asked, passages and system prompts included: what leaks is seen."""

    async def cards(self) -> tuple[ModelCard, ...]:
        return (ModelCard(name=MODEL, window=WINDOW, parameters=1, file_bytes=1, description="says what it hears"),)

    async def files(self) -> tuple[ModelFile, ...]:
        return (
            ModelFile(
                name=MODEL, source="demo", file="echo.gguf", exists=True, size=1, memory=2, layers=0,
                description="", recommended=False,
            ),
        )  # fmt: skip

    async def machine(self) -> Machine:
        return machine()

    async def load(self, name: str, adapter: str | None) -> None:
        pass

    async def check_layers(self, name: str, layers: int) -> None:
        if layers:
            raise InvalidRequest("There is no GPU here.", "value")

    async def check_health(self) -> None:
        pass

    async def stats(self) -> dict[str, float]:
        return {}

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        sizes = tuple(len(text.split()) for text in texts)
        return Measure(prompt_tokens=len(_asked(request).split()), text_tokens=sizes, window=WINDOW)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done]:
        text = _asked(request)
        done = Done(
            (End("stop"),) * request.n,
            Usage(prompt_tokens=len(text.split()), completion_tokens=request.n),
            Timings(queued_s=0, prefill_s=0, decode_s=0),
        )
        for choice in range(request.n):
            yield Delta(text, 1, choice)
        yield done


class Words:
    """An embedder whose vectors count words."""

    async def card(self) -> tuple[str, int]:
        return "words", DIMENSION

    async def space(self) -> Space:
        return Space(model="words", dimension=DIMENSION)

    async def check_health(self) -> None:
        pass

    async def embed_query(self, text: str) -> Floats:
        return self._vectors([text])[0]

    async def embed_passages(self, texts: Sequence[str]) -> Floats:
        return self._vectors(texts)

    async def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        return self._vectors(texts), sum(len(text.split()) for text in texts)

    def _vectors(self, texts: Sequence[str]) -> Floats:
        vectors = np.full((len(texts), DIMENSION), 0.01, np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().split():
                vector[crc32(word.encode()) % DIMENSION] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Whole:
    """A gateway and its application. home: where its keys lie."""

    def __init__(self, gateway: Gateway, home: Path) -> None:
        self.gateway, self.home = gateway, home
        self.app: FastAPI = gateway.application()

    def http(self, key: str = "none", host: str = "localhost") -> httpx.AsyncClient:
        """A client that shows a key."""
        app: ASGIApp = self.app
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers, timeout=60)

    async def key(self, tenant: str, *scopes: Scope, limits: Limits | None = None) -> str:
        """A new key's text. scopes: none for chat and documents."""
        keys = Keys(self.gateway.recorder.pool, pepper(self.home, None, make=True) or b"")
        self.gateway.keyring._any_asked_at = float("-inf")  # that there are keys now is known at once
        return (await keys.create(tenant, scopes or ("chat", "documents"), limits=limits))[1]


async def awake(_: object) -> Standing:
    """One replica, always."""
    return Standing(running=1)


@asynccontextmanager
async def whole(
    home: Path, settings: Settings | None = None, llm: object | None = None, look: Look = awake
) -> AsyncIterator[Whole]:
    """A gateway over the stores of `home`. Its PostgreSQL is the one of the environment, else an embedded one.

    llm: the model's part; None for a stand-in. look: tells how many replicas it has.
    """
    settings = settings or Settings()
    store = VectorStore(home)
    embedder: Any = Words()
    retriever = Retriever(embedder, store)
    librarian = Librarian(retriever, settings.documents, home)
    parts: list[Any] = [Local(part) for part in (llm or Echo(), embedder, retriever, librarian)]
    tools = Tools(retriever, settings.tools, settings.rag, home) if settings.tools.enabled else None
    gateway = Gateway(*parts, settings, home, Local(tools) if tools else None, look=look)  # type: ignore[arg-type]
    try:
        async with gateway.open("127.0.0.1"):
            yield Whole(gateway, home)
    finally:
        if tools:
            await tools.close()
        await librarian.close()
        await store.close()


def bare() -> FastAPI:
    """All routes, over nothing: to look at, and not to call."""
    gateway: Any = Gateway(*[Local(None)] * 4, Settings(), Path())  # type: ignore[list-item]
    gateway.keyring = gateway.limiter = None
    app: FastAPI = gateway.application()
    return app


def _asked(request: Generate) -> str:
    said = [request.prompt or "", *(message.content for message in request.messages)]
    return "\n".join(said)
