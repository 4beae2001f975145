"""Several answers told as one: what a request with many prompts gets."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from app.messages import Delta, Done, Timings, Usage
from app.tools.runner import ToolRun
from deployments.answering import Opened

Answer = AsyncGenerator[Opened | Delta | ToolRun | Done]


async def together(answers: Sequence[Answer], n: int) -> Answer:
    """The answers at the same time, as one answer of all their choices. n: choices of each.

    Opened when all have opened, so that what is refused is refused before; done when all are. Closing it closes them.
    """
    opened, early, dones = 0, list[Delta](), dict[int, Done]()
    async with aclosing(_merged(answers)) as items:
        async for number, item in items:
            if isinstance(item, Done):
                dones[number] = item
            elif isinstance(item, Delta):
                delta = replace(item, choice=item.choice + n * number)
                if opened < len(answers):
                    early.append(delta)
                else:
                    yield delta
            else:
                opened += 1
                if opened == len(answers):
                    yield Opened((), None, item.adapter)
                    for delta in early:
                        yield delta
    yield _sum([dones[number] for number in range(len(answers))])


async def _merged(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Any]]:
    """The items as they come, each with the number of its answer."""
    waiting = {asyncio.create_task(_next(answer)): number for number, answer in enumerate(answers)}
    try:
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in ready:
                item, number = task.result(), waiting.pop(task)
                if item is not None:
                    waiting[asyncio.create_task(_next(answers[number]))] = number
                    yield number, item
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for answer in answers:
            await answer.aclose()


async def _next(answer: Answer) -> Any:
    return await anext(answer, None)


def _sum(dones: Sequence[Done]) -> Done:
    """Tokens are summed; the time is that of the slowest, stage by stage."""
    usage = Usage(**{name: sum(getattr(done.usage, name) for done in dones) for name in Usage.model_fields})
    timings = Timings(**{name: max(getattr(done.timings, name) for done in dones) for name in Timings.model_fields})
    return Done(tuple(end for done in dones for end in done.ends), usage, timings)
