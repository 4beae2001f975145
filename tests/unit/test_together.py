"""Several answers told as one: none is lost, one that is refused refuses all, and all are closed."""

import asyncio
from collections.abc import Sequence
from types import EllipsisType

import pytest

from app.errors import ContextTooLong, EngineFailed
from app.messages import Delta, Done, End, Timings, Usage
from deployments.answering import Opened
from deployments.together import Answer, together

OPENED = Opened((), None)


def done(*reasons: str, seconds: float = 1.0) -> Done:
    timings = Timings(queued_s=0, prefill_s=0, decode_s=seconds)
    return Done(tuple(End(reason) for reason in reasons), Usage(prompt_tokens=3, completion_tokens=2), timings)


class Told:
    """An answer that tells its items; None waits forever, ... for a moment. closed: whether it was."""

    def __init__(self, *items: Opened | Delta | Done | Exception | EllipsisType | None) -> None:
        self.items, self.closed = items, False

    async def answer(self) -> Answer:
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if item is None:
                    await asyncio.Event().wait()
                elif isinstance(item, Exception):
                    raise item
                elif not isinstance(item, EllipsisType):
                    yield item
        finally:
            self.closed = True


async def all_of(told: Sequence[Told], n: int) -> list[Opened | Delta | Done]:
    return [item async for item in together([one.answer() for one in told], n)]


async def test_the_choices_of_all_answers_are_one_answer_s():
    """Those of the second come behind those of the first; tokens are summed, and the slowest is the time."""
    first = Told(OPENED, Delta("a", 1), Delta("b", 1, 1), done("stop", "length"))
    second = Told(OPENED, Delta("c", 1), Delta("d", 1, 1), done("length", "stop", seconds=4.0))
    opened, *deltas, last = await all_of([first, second], 2)
    assert opened == OPENED
    assert sorted(deltas, key=lambda delta: delta.choice) == [Delta(text, 1, n) for n, text in enumerate("abcd")]
    assert isinstance(last, Done)
    assert [end.finish_reason for end in last.ends] == ["stop", "length", "length", "stop"]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.timings.decode_s) == (6, 4, 4.0)


async def test_nothing_is_told_before_all_have_opened():
    """One that is refused refuses the request, with its own error, and the others are closed."""
    quick, refused = Told(OPENED, Delta("a", 1), None), Told(..., ContextTooLong(9, 1, 5))
    with pytest.raises(ContextTooLong):
        await anext(together([quick.answer(), refused.answer()], 1))
    assert quick.closed
    assert refused.closed


async def test_what_came_early_is_told_in_its_order():
    """Pieces of the quick one wait for the slow one's beginning."""
    quick = Told(OPENED, Delta("a", 1), Delta("b", 1), done("stop"))
    slow = Told(*[...] * 20, OPENED, done("stop"))
    opened, *deltas, _ = await all_of([quick, slow], 1)
    assert opened == OPENED
    assert [delta.text for delta in deltas if isinstance(delta, Delta)] == ["a", "b"]


async def test_a_late_failure_of_one_ends_all():
    """With its error; nobody goes on for nothing."""
    good, bad = Told(OPENED, None), Told(OPENED, Delta("a", 1), EngineFailed("it broke"))
    answer = together([good.answer(), bad.answer()], 1)
    assert [await anext(answer), await anext(answer)] == [OPENED, Delta("a", 1, 1)]
    with pytest.raises(EngineFailed):
        await anext(answer)
    assert good.closed
    assert bad.closed


async def test_closing_it_closes_all():
    """A client that leaves frees every slot."""
    told = [Told(OPENED, None), Told(OPENED, None)]
    answer = together([one.answer() for one in told], 1)
    assert await anext(answer) == OPENED
    await answer.aclose()
    assert all(one.closed for one in told)
