"""Answers on their way from an engine to who asked: several of one request, in pieces that join where they wait."""

import asyncio
from dataclasses import replace

from app.messages import Delta, Done, Sampling, ToolCallDelta

Item = Delta | Done | Exception
SEED_STEP = 0x9E3779B1  # between the seeds of a request's answers: odd, so that they are all different
SEEDS = 2**32 - 1  # llama.cpp's, of which the largest number is none


class Stream:
    """From one thread to one asyncio task. A reader that is slow finds joined deltas, not a long queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: list[Item] = []
        self._filled = asyncio.Event()

    def put(self, item: Item) -> None:
        """Append an item. Runs in the loop's thread."""
        last = self._items[-1] if self._items else None
        joint = joined(last, item) if isinstance(last, Delta) and isinstance(item, Delta) else None
        if joint:
            self._items[-1] = joint
        else:
            self._items.append(item)
        self._filled.set()

    async def take(self) -> list[Item]:
        """All that is there, at least one item."""
        await self._filled.wait()
        self._filled.clear()
        items, self._items = self._items, []
        return items


def joined(first: Delta, second: Delta) -> Delta | None:
    """Two pieces of one answer as one, where thoughts stay before text, and text before calls; else None."""
    if first.choice != second.choice:
        return None
    if (first.text and second.reasoning) or (first.tool_calls and (second.reasoning or second.text)):
        return None
    return Delta(
        first.text + second.text,
        first.tokens + second.tokens,
        first.choice,
        first.reasoning + second.reasoning,
        _joined_calls(first.tool_calls, second.tool_calls),
        first.logprobs + second.logprobs,
    )


def _joined_calls(first: tuple[ToolCallDelta, ...], second: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    if not (first and second) or first[-1].index != second[0].index:
        return first + second
    middle = replace(first[-1], arguments=first[-1].arguments + second[0].arguments)
    return (*first[:-1], middle, *second[1:])


def seeded(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one of several answers: their seeds follow from the request's."""
    if sampling.seed is None or not choice:
        return sampling
    return sampling.model_copy(update={"seed": (sampling.seed + choice * SEED_STEP) % SEEDS})
