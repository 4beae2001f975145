"""The generating routes over a stand-in of the engine, in this process: real HTTP but for the sockets."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
from fastapi import APIRouter, FastAPI

from app.messages import Delta, Done, Generate, Measure, Passage, Search
from app.settings import RagSettings, Settings
from deployments.answering import Answering, Ask
from deployments.guard import Guard
from deployments.metrics import Metrics
from deployments.routes import generation, messages, refusals
from tests.fakes import NO_TOOLS, Handle, Keyring, Recorder, Streamed


def application(*routers: APIRouter, metrics: Metrics | None = None, max_body: int = 1_000_000) -> FastAPI:
    """Some routes behind the guard, with errors rendered as they are."""
    app = FastAPI()
    app.add_middleware(
        Guard, keyring=Keyring(), limiter=None, max_body=max_body, max_upload=2000, metrics=metrics or Metrics()
    )
    refusals.register(app)
    for router in routers:
        app.include_router(router)
    return app


class Server:
    """Answers every request with the items, and each of several choices with the same end. asked: of the engine."""

    def __init__(
        self, *items: Delta | Done | Exception | None, recorder: Any = None, max_body: int = 1_000_000
    ) -> None:
        self.items, self.asked = items, list[Generate]()
        self.engine = Streamed(())
        self.recorder, self.metrics = recorder or Recorder(), Metrics()
        llm = Handle(generate=self._generate, measure=self._measure)
        self.answering = Answering(
            llm, Handle(search=self._search), self.recorder, RagSettings(enabled=False), 30.0, self.metrics
        )
        self.answers: list[AsyncGenerator[Any]] = []  # kept, so that no garbage collector closes them
        answering = SimpleNamespace(answer=self._answer)
        gateway = SimpleNamespace(
            answering=answering,
            served=lambda model: model,
            fingerprint=lambda *_: "fp_1",
            llm=llm,
            settings=Settings(),
            tooling=NO_TOOLS,
        )
        routers = generation.routes(gateway), messages.routes(gateway)
        self.app = application(*routers, metrics=self.metrics, max_body=max_body)

    def http(self) -> httpx2.AsyncClient:
        """A plain client."""
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost")

    def openai(self) -> openai.AsyncOpenAI:
        """The official client, which checks what it parses."""
        return openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            max_retries=0,
            http_client=self.http(),
            _strict_response_validation=True,
        )

    def anthropic(self) -> anthropic.AsyncAnthropic:
        """Anthropic's, likewise."""
        return anthropic.AsyncAnthropic(
            base_url="http://localhost",
            api_key="none",
            max_retries=0,
            http_client=self.http(),
            _strict_response_validation=True,
        )

    async def post(self, path: str = "/v1/chat/completions", **body: object) -> httpx2.Response:
        async with self.http() as http:
            return await http.post(path, json=body)

    def _generate(self, request: Generate) -> Streamed:
        self.asked.append(request)
        self.engine = Streamed(
            replace(item, ends=item.ends * request.n) if isinstance(item, Done) else item for item in self.items
        )
        return self.engine

    async def _measure(self, request: Generate, _: tuple[str, ...]) -> Measure:
        self.asked.append(request)
        return Measure(prompt_tokens=42, text_tokens=(), window=2048)

    async def _search(self, _: Search) -> tuple[Passage, ...]:
        return ()

    def _answer(self, ask: Ask) -> AsyncGenerator[Any]:
        self.answers.append(self.answering.answer(ask))
        return self.answers[-1]
