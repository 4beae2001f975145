"""Streams between nodes: silence is told from work, and only silence is an error."""

import asyncio
import pickle
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from app.errors import Unavailable
from app.messages import Beat
from deployments.beating import beating, living


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
    async for item in beating(source.items(), 0.001):
        heard.append(item)
        if heard.count(Beat()) == 3:
            source.let.set()
    assert heard[:4] == ["a", *[Beat()] * 3]
    assert [item for item in heard if item != Beat()] == ["a", "b"]


async def test_who_leaves_ends_the_work():
    """Also in the middle of silence."""
    source = Source()
    async with aclosing(beating(source.items(), 0.001)) as items:
        assert [await anext(items), await anext(items)] == ["a", Beat()]
    assert source.closed


async def test_a_failure_comes_through():
    """As it was raised, and not as a silence."""

    async def failing() -> AsyncGenerator[str]:
        yield "a"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        assert [item async for item in beating(failing())] == ["a"]


async def test_beats_keep_a_stream_alive_and_are_heard_by_nobody():
    """However long the engine takes."""
    source = Source()
    asyncio.get_running_loop().call_later(0.2, source.let.set)
    assert [item async for item in living("language model", beating(source.items(), 0.01), lost_s=0.1)] == ["a", "b"]


async def test_a_silent_stream_is_lost():
    """The node is gone, or cut off: people are told, and may ask again."""
    items = living("language model", Source().items(), lost_s=0.01)
    assert await anext(items) == "a"
    with pytest.raises(Unavailable, match=r"its replica has said nothing for 0\.01 s, and is taken for lost"):
        await anext(items)


def test_a_beat_crosses_nodes():
    """As itself."""
    assert pickle.loads(pickle.dumps(Beat())) == Beat()
