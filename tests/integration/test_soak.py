"""A thousand requests of mixed kinds; `python -m benchmarks.soak` asks more of them, on every family."""

import random
from pathlib import Path

import pytest

from benchmarks.soak import SIZES, model, soak
from tests.engines import running

pytestmark = pytest.mark.integration


async def test_a_thousand_requests_leak_nothing(tmp_path: Path):
    """Formats, calls, log-probabilities, adapters, several answers, and a third of the clients leaving.

    No sequence, no cell, no place in the queue; and memory grows by less than 8 MB in the second half.
    """
    with running(model(tmp_path, "coder"), **SIZES) as engine:
        seen = await soak(engine, tmp_path, 1000, random.Random(1))
        stats = engine.stats()
    assert stats.cancelled > 100
    assert min(stats.finished, stats.evictions, stats.adapter_switches, stats.cached_tokens) > 100
    assert seen.end - seen.half < 8e6
