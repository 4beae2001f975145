"""Streams between nodes: silence is told from work, and only silence is an error."""

import asyncio
import pickle
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from app.errors import Unavailable
from app.messages import Beat
from deployments.beating import beating, living
from deployments.calls import stream
from deployments.waking import Sleeper, Standing
from tests.gateway import LocalStreams


class Source:
    """Says a, then nothing until it is let, then b."""

    def __init__(self) -> None:
        self.let, self.closed = asyncio.Event(), False

    async def items(self) -> AsyncGenerator[str]:
        try:
            yield "a"
            await self.let.wait()
            yield "b"
        finally:
            self.closed = True


async def test_an_engine_beats_while_it_works():
    """Between its items, for as long as it takes; the items stay as they are."""
    source, heard = Source(), list[object]()
    async for batch in beating(source.items(), 0.001):
        heard += batch
        if heard.count(Beat()) == 3:
            source.let.set()
    assert heard[:4] == ["a", *[Beat()] * 3]
    assert [item for item in heard if item != Beat()] == ["a", "b"]


async def test_who_leaves_ends_the_work():
    """Also in the middle of silence."""
    source = Source()
    async with aclosing(beating(source.items(), 0.001)) as batches:
        assert [await anext(batches), await anext(batches)] == [("a",), (Beat(),)]
    assert source.closed


async def test_what_comes_together_travels_together():
    """A batch costs both sides the same, however much is in it."""

    async def items() -> AsyncGenerator[str]:
        yield "a"
        yield "b"
        await asyncio.sleep(0.01)
        yield "c"
        yield "d"

    assert [batch async for batch in beating(items())] == [("a", "b"), ("c", "d")]


async def test_an_answer_that_nobody_reads_before_its_end_comes_in_few_batches():
    """The first piece at once, so that a failure is early; the end at once; all between them joined for the pause."""

    async def items() -> AsyncGenerator[int]:
        for number in range(20):
            yield number
            await asyncio.sleep(0.001)

    async with asyncio.timeout(5):
        assert [batch async for batch in beating(items(), pause_s=60.0)] == [(0,), tuple(range(1, 20))]


async def test_a_failure_comes_through():
    """As it was raised, behind what was said before, and not as a silence."""

    async def failing() -> AsyncGenerator[str]:
        yield "a"
        raise ValueError("broken")

    batches = beating(failing(), pause_s=60.0)
    assert await anext(batches) == ("a",)
    with pytest.raises(ValueError, match="broken"):
        await anext(batches)


async def test_beats_keep_a_stream_alive():
    """However long the engine takes."""
    source = Source()
    asyncio.get_running_loop().call_later(2.5, source.let.set)
    beats = beating(source.items(), 0.01)
    heard = [item async for batch in living("language model", beats, lost_s=2.0) for item in batch]
    assert [item for item in heard if item != Beat()] == ["a", "b"]


async def test_beats_are_heard_by_nobody():
    """Who asks for the stream of a part gets what it says, item by item."""
    source = Source()
    asyncio.get_running_loop().call_later(0.05, source.let.set)

    async def here(_: object) -> Standing:
        return Standing(running=1)

    part: Any = LocalStreams(SimpleNamespace(generate=lambda: beating(source.items(), 0.01)))
    sleeper = Sleeper(SimpleNamespace(options=lambda stream: part), "language model", 5.0, here)  # type: ignore[arg-type]
    assert [item async for item in stream("language model", sleeper, "generate")] == ["a", "b"]


async def test_a_silent_stream_is_lost():
    """The node is gone, or cut off: people are told, and may ask again."""
    batches = living("language model", beating(Source().items()), lost_s=0.01)
    assert await anext(batches) == ("a",)
    with pytest.raises(Unavailable, match=r"its replica has said nothing for 0\.01 s, and is taken for lost"):
        await anext(batches)


def test_a_beat_crosses_nodes():
    """As itself."""
    assert pickle.loads(pickle.dumps(Beat())) == Beat()
