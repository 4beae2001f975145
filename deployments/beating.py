"""A sign of life on streams between nodes: whoever waits for an answer learns within seconds that its node is gone.

A node that loses its network closes no connection, and Ray looks after those of streams every few minutes only: an
answer would hang as long. So an engine says `Beat` now and then, for gateways alone to hear.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from app.errors import Unavailable
from app.messages import Beat

EVERY_S = 5.0
LOST_S = 30.0  # without a word: a replica whose machine is too busy for that long is lost, too


async def beating(items: AsyncGenerator[Any], every_s: float = EVERY_S) -> AsyncGenerator[Any]:
    """The items, and a Beat every `every_s`, whatever else is said. Closing this closes the items."""
    said = asyncio.Queue[Any]()

    async def speak() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    said.put_nowait(item)
        finally:
            said.put_nowait(None)

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            said.put_nowait(Beat())

    speaking, beats = asyncio.create_task(speak()), asyncio.create_task(beat())
    try:
        while (item := await said.get()) is not None:
            yield item
        await speaking
    finally:
        speaking.cancel()
        beats.cancel()
        await asyncio.gather(speaking, beats, return_exceptions=True)


async def living(part: str, items: AsyncIterator[Any], lost_s: float = LOST_S) -> AsyncGenerator[Any]:
    """The items without the beats. Raises Unavailable where nothing at all comes for `lost_s`."""
    while True:
        try:
            async with asyncio.timeout(lost_s):
                item = await anext(items, None)
        except TimeoutError:
            raise Unavailable(part, f"its replica has said nothing for {lost_s:g} s, and is taken for lost") from None
        if item is None:
            return
        if not isinstance(item, Beat):
            yield item
