"""Engines for the tests: on models made on the spot, with what is asked of them and what they say."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gguf_factory import chain_model, vocabulary

from app.llama.engine import Engine
from app.messages import Delta, Done, Generate, Message, Sampling
from app.settings import LLMSettings

GREEDY = Sampling(temperature=0)


@contextmanager
def running(path: Path, **settings: object) -> Iterator[Engine]:
    """An engine, closed at the end."""
    engine = Engine(path, LLMSettings(**{"window": 256, "flush_s": 0.0, "threads": 1, **settings}))
    try:
        yield engine
    finally:
        engine.close()


def alphabet_model(path: Path) -> Path:
    """Says the alphabet, over and over."""
    return chain_model(path, [vocabulary()[0].index(character) for character in "abcdefghijklmnopqrstuvwxyz"])


def asked(content: str = "hi", **fields: object) -> Generate:
    """A request of one user message, greedy where nothing else is said."""
    messages = (Message(role="user", content=content),)
    return Generate(**{"request_id": "r", "model": "m", "messages": messages, "sampling": GREEDY, **fields})


async def answers(engine: Engine, request: Generate) -> tuple[list[str], Done]:
    """The texts of all answers, and how they ended."""
    items = [item async for item in engine.generate(request)]
    done = items.pop()
    assert isinstance(done, Done)
    texts = [""] * request.n
    for item in items:
        assert isinstance(item, Delta)
        texts[item.choice] += item.text
    assert sum(item.tokens for item in items) == done.usage.completion_tokens
    return texts, done


async def answer(engine: Engine, request: Generate) -> tuple[str, Done]:
    """The text of the one answer, and how it ended."""
    (text,), done = await answers(engine, request)
    return text, done


async def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for what another thread does."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 — a thread sets no asyncio event
            await asyncio.sleep(0.001)


def before_each_batch(engine: Engine, look: Callable[[], object]) -> None:
    """Have something done in the engine's thread, with a batch that is complete and not yet decoded."""
    decode = engine._context.decode

    def looked() -> int:
        look()
        return decode()

    engine._context.decode = looked  # type: ignore[method-assign]


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """It decodes nothing before the end."""
    let = threading.Event()
    before_each_batch(engine, let.wait)
    try:
        yield
    finally:
        let.set()


async def idle(engine: Engine) -> None:
    """Until the step loop has let go of everything."""
    await until(lambda: engine.stats().slots_in_use == 0)


def sequences_held(engine: Engine) -> int:
    """By llama.cpp's own account; only while the engine is idle."""
    return sum(engine._context.held(sequence) > 0 for sequence in range(engine._context.outputs))
