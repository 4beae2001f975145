"""A sign of life on streams between nodes: whoever waits for an answer learns within seconds that its node is gone.

A node that loses its network closes no connection, and Ray looks after those of streams every few minutes only: an
answer would hang as long. So an engine says `Beat` now and then, for gateways alone to hear.

What it says travels in batches: each costs both sides about a millisecond of processor time, however much is in it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from app.errors import Unavailable
from app.messages import Beat

EVERY_S = 5.0
LOST_S = 30.0  # without a word: a replica whose machine is too busy for that long is lost, too
WHOLE_S = 0.5  # between two batches of an answer that nobody reads before its end


async def beating(
    items: AsyncGenerator[Any], every_s: float = EVERY_S, *, pause_s: float = 0.0
) -> AsyncGenerator[tuple[Any, ...]]:
    """The items, those together that wait together; and a Beat every `every_s`, whatever else is said.

    pause_s: between two of these batches, for who reads the end only. The first and the last one wait for nothing.
    Closing this closes the items.
    """
    said, news, over = list[Any](), asyncio.Event(), asyncio.Event()

    def say(item: Any) -> None:
        said.append(item)
        news.set()

    async def speak() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    say(item)
        finally:
            over.set()
            news.set()

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            say(Beat())

    speaking, beats = asyncio.create_task(speak()), asyncio.create_task(beat())
    try:
        while True:
            await news.wait()
            news.clear()
            if said:
                batch = tuple(said)
                said.clear()
                yield batch
            if over.is_set() and not said:
                break
            if pause_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await over.wait()
        await speaking
    finally:
        speaking.cancel()
        beats.cancel()
        await asyncio.gather(speaking, beats, return_exceptions=True)


async def living(
    part: str, batches: AsyncIterator[tuple[Any, ...]], lost_s: float = LOST_S
) -> AsyncGenerator[tuple[Any, ...]]:
    """The batches without the beats. Raises Unavailable where nothing at all comes for `lost_s`."""
    while True:
        try:
            async with asyncio.timeout(lost_s):
                batch = await anext(batches, None)
        except TimeoutError:
            raise Unavailable(part, f"its replica has said nothing for {lost_s:g} s, and is taken for lost") from None
        if batch is None:
            return
        yield batch
