"""vLLM gives its GPUs away and takes them again: to a training run, which needs them, and back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from engines import answer, asked, until

from app.control import Control
from app.desired import Desired
from app.errors import EngineFailed, InvalidRequest, Unavailable
from app.llama.source import DEMO_FILE
from app.messages import Sampling
from app.vllm.settings import VllmSettings
from train.demo_export import restore

pytestmark = pytest.mark.vllm
ON = Sampling(temperature=0, ignore_eos=True)


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Any]:
    pytest.importorskip("vllm")
    from deployments.vllm import Vllm

    restore(DEMO_FILE, tmp_path / "hf")
    small = {"dtype": "float32", "kv_cache_bytes": 128 * 2**20, "enforce_eager": True, "max_lora_rank": 16}
    made = Vllm(
        VllmSettings(engine="vllm", model=str(tmp_path / "hf"), name="m", window=512, slots=4, **small), tmp_path
    )
    yield made
    made.close()


def at(layers: int, revision: int) -> Desired:
    return Desired(revision=revision, control=Control(layers={"m": layers}))


async def test_vllm_ends_when_its_answers_have_and_starts_again(replica: Any):
    """Meanwhile requests are a 503 with the reason, the replica is healthy, and its card is known."""
    process, card = replica.engine._llm, await replica.card()
    before, _ = await answer(replica, asked("What is Python?", max_tokens=16))
    async with aclosing(replica.generate(asked("Hello!", max_tokens=300, sampling=ON))) as running:
        await anext(running)
        assert (await replica._converge(at(0, 1)))["m"].layers == -1  # it still answers
        await asyncio.sleep(0.2)
        with pytest.raises(Unavailable, match="its GPUs are lent"):
            await answer(replica, asked())
        rest = [item async for item in running]
    assert rest[-1].finish_reason == "length"
    await until(lambda: replica._moving is None, 300)
    assert (await replica._converge(at(0, 1)))["m"].layers == 0
    assert (await replica.files())[0].layers == 0
    await replica.check_health()
    assert (await replica.card(), await replica.stats()) == (card, {})
    with pytest.raises(Unavailable):
        await replica.measure(asked(), ())
    await replica._converge(at(-1, 2))
    await until(lambda: replica._moving is None, 300)
    assert (await replica._converge(at(-1, 2)))["m"].layers == -1
    assert replica.engine._llm is not process
    assert (await answer(replica, asked("What is Python?", max_tokens=16)))[0] == before


async def test_a_part_of_the_layers_is_refused(replica: Any):
    """All or none: both the request and a state that somebody set."""
    for layers in (-1, 0):
        await replica.check_layers("m", layers)
    with pytest.raises(InvalidRequest, match="or none and does not answer"):
        await replica.check_layers("m", 7)
    held = (await replica._converge(at(7, 1)))["m"]
    assert (held.layers, "or none" in held.refused) == (-1, True)


async def test_a_vllm_that_does_not_start_again_has_its_replica_replaced(replica: Any, monkeypatch: pytest.MonkeyPatch):
    """It is tried once: another process may do better, this one is not asked again and again."""
    tried = []

    def started() -> None:
        tried.append(1)
        raise RuntimeError("no memory")

    await replica._converge(at(0, 1))
    await until(lambda: replica._moving is None, 300)
    monkeypatch.setattr(replica, "_started", started)
    for _ in range(2):
        await replica._converge(at(-1, 2))
        await until(lambda: replica._moving is None, 300)
    assert tried == [1]
    with pytest.raises(EngineFailed, match="no memory"):
        await replica.check_health()
