"""Sharing out the room of a step, and handing over text."""

import asyncio

import numpy as np
import pytest

from app.deltas import Stream, joined, seeded
from app.llama.answer import Answer
from app.llama.job import Job, Request, share_prefill
from app.messages import Delta, Sampling, ToolCallDelta


def loading(*left: int) -> list[Job]:
    """Jobs, oldest first, with so many prompt tokens still to load."""
    stream = Stream(asyncio.new_event_loop())
    stream.loop.close()
    return [Request(np.zeros(tokens, np.int32), 1, stream).answer(Answer(), None) for tokens in left]


@pytest.mark.parametrize(
    ("left", "budget", "shares"),
    [
        ((100,), 500, {0: 100}),
        ((1000,), 500, {0: 500}),
        ((1000, 10), 500, {0: 490, 1: 10}),  # the short one answers in this step
        ((1000, 400, 200), 500, {0: 250, 2: 200}),  # the oldest has half, the shorter go first
        ((300, 300), 400, {0: 300}),  # equals in order of age, and the first answers without a part of the second
        ((300, 300), 200, {0: 200}),
        ((70, 70, 70), 150, {0: 70, 1: 70}),
        ((100, 100), 1, {0: 1}),
        ((100,), 0, {}),
        ((), 500, {}),
    ],
)
def test_short_prompts_go_first_and_the_oldest_never_starves(
    left: tuple[int, ...], budget: int, shares: dict[int, int]
):
    """What is complete is not held up by a part of what is not."""
    jobs = loading(*left)
    assert {jobs.index(job): share for job, share in share_prefill(jobs, budget)} == shares


async def test_a_slow_reader_finds_one_joined_delta():
    """What came while it did not read is one item, in order, with all its tokens."""
    stream = Stream(asyncio.get_running_loop())
    stream.put(Delta("a", 1))
    stream.put(Delta("bc", 2))
    assert await stream.take() == [Delta("abc", 3)]


async def test_a_reader_waits_for_the_first_item():
    """And gets it as soon as it is there."""
    stream = Stream(asyncio.get_running_loop())
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.put(Delta("a", 1))
    assert await reader == [Delta("a", 1)]


def test_pieces_are_joined_unless_that_would_change_their_order():
    """Thoughts come before text and text before calls within one delta; answers are never mixed."""
    thought, text = Delta("", 1, reasoning="hm"), Delta("yes", 1)
    call = Delta("", 1, tool_calls=(ToolCallDelta(0, "{}"),))
    assert joined(thought, text) == Delta("yes", 2, reasoning="hm")
    assert joined(joined(text, call), call) == Delta("yes", 3, tool_calls=(ToolCallDelta(0, "{}{}"),))
    assert joined(text, thought) is joined(call, text) is joined(call, thought) is None
    assert joined(text, Delta("no", 1, choice=1)) is None


def test_answers_to_one_request_have_seeds_of_their_own():
    """The first one has the request's; without a seed all are random."""
    seeds = {seeded(Sampling(seed=2**32 - 2), choice).seed for choice in range(16)}
    assert len(seeds) == 16
    assert seeded(Sampling(seed=7), 0).seed == 7
    assert seeded(Sampling(), 3).seed is None
