"""How much of the time memory works: little while people talk, all of it when they do not."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.memory import Due, Exchange
from app.messages import Chunk, Index
from deployments.remembering import TALKING_S, TOGETHER, Remembering

WORK_S = 0.01


class Queued:
    """Two groups of turns that were asked for some time ago."""

    def __init__(self, age_s: float) -> None:
        asked = datetime.now(UTC) - timedelta(seconds=age_s)
        self.due = tuple(Due(uuid4(), asked) for _ in range(2 * TOGETHER))

    async def forgotten(self, _: int) -> tuple[()]:
        return ()

    async def unremembered(self, _: int) -> tuple[Due, ...]:
        return self.due

    async def exchange(self, _: object) -> Exchange:
        return Exchange("default", datetime.now(UTC), "a title", "a text", 0)

    async def remembered(self, _: Due, chunks: int) -> bool:
        return chunks == 1


class Slow:
    """A retriever that is busy for WORK_S."""

    async def index(self, _: Index) -> int:
        await asyncio.sleep(WORK_S)
        return 1

    async def forget(self, *_: object) -> None:
        raise AssertionError


def whole(text: str) -> tuple[Chunk, ...]:
    return (Chunk(number=0, text=text, start=0, end=len(text)),)


@pytest.mark.parametrize(("age_s", "rests"), [(0.0, True), (TALKING_S + 1, False)])
async def test_it_gives_way_while_people_talk(age_s: float, rests: bool) -> None:
    """Fifty times as long as each of two groups took, or a second; and not at all where nobody said anything."""
    memory: Any = None
    work: Any = Queued(age_s)
    began = time.perf_counter()
    assert await Remembering(memory, Slow(), whole).once(work, way=50.0) == 2 * TOGETHER
    assert (time.perf_counter() - began > 2 * 50 * WORK_S) is rests
