"""A gateway and an engine behind it, with three adapters that say one letter each; the bare base says the alphabet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
from engines import alphabet_model
from gguf_factory import constant_adapter

from app.registry import Registry
from app.settings import LLMSettings, Settings, WatchSettings
from deployments.llama_cpp import LlamaCpp
from tests.gateway import Whole, whole

LETTERS = {"v1": "x", "v2": "y", "v3": "z"}


@dataclass
class Served:
    """What runs, and what asks it."""

    gateway: Whole
    replica: LlamaCpp
    registry: Registry
    http: httpx.AsyncClient

    async def said(self, model: str, tokens: int = 5) -> str:
        """Of a chat that must succeed."""
        answer = await self.chat(model, tokens)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text

    async def chat(self, model: str, tokens: int = 5, said: str = "hi", **headers: str) -> httpx.Response:
        messages = [{"role": "user", "content": said}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "rag": False}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    async def loaded(self) -> tuple[str, ...]:
        return (await self.replica.card()).adapters


def make(folder: Path) -> Path:
    """The files, in a folder."""
    alphabet_model(folder / "base.gguf")
    for version, letter in LETTERS.items():
        constant_adapter(folder / f"{version}.gguf", ord(letter))
    return folder


def settings(folder: Path) -> LLMSettings:
    """Of the engine."""
    return LLMSettings(model=str(folder / "base.gguf"), window=256, adapters=1, threads=1, speculation=0)


@asynccontextmanager
async def serving(
    folder: Path, home: Path, pool: asyncpg.Pool, watch: WatchSettings | None = None
) -> AsyncIterator[Served]:
    """All of it, the adapters registered as having passed their gates. folder: with the files."""
    registry = Registry(pool, home)
    for version in LETTERS:
        await registry.add("mindfu-demo", version, folder / f"{version}.gguf", verdict="passed")
    replica = LlamaCpp(settings(folder), home, follow=True)
    await replica.check_health()
    all_settings = Settings(llm=settings(folder), watch=watch or WatchSettings(enabled=False))
    try:
        async with whole(home, all_settings, llm=replica) as gateway, gateway.http() as http:
            yield Served(gateway, replica, registry, http)
    finally:
        replica.close()
