"""How the engine shares its time, on real llama.cpp: stalls, turns, drafts."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import GREEDY, alphabet_model, answer, answers, asked, running, until
from gguf_factory import Shape, random_model

from app.errors import EngineFailed
from app.llama.engine import Engine
from app.messages import JsonFormat, Sampling

pytestmark = pytest.mark.integration

SLOW = Shape(embedding=256, layers=4, heads=4, kv_heads=2, feed_forward=1024)  # about 2 ms a token, 0.3 ms in a batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    alphabet_model(folder / "alphabet.gguf")
    random_model(folder / "random.gguf", seed=35, quantized=False)
    random_model(folder / "slow.gguf", SLOW)
    return folder


@pytest.fixture
def alphabet(folder: Path) -> Iterator[Engine]:
    with running(folder / "alphabet.gguf", window=1024, speculation=16) as engine:
        yield engine


async def gaps(engine: Engine, prompts: int) -> list[float]:
    """The times between the tokens of a stream, while long prompts come one after another."""
    items, times = engine.generate(asked(sampling=Sampling(ignore_eos=True), max_tokens=400)), []

    async def load() -> None:
        for number in range(prompts):
            await answer(engine, asked(f"{number}" * 1500, max_tokens=1))

    await anext(items)
    loading = asyncio.create_task(load())
    async for _ in items:
        times.append(time.perf_counter())
        if loading.done():
            break
    await items.aclose()
    await loading
    return np.diff(times).tolist()


async def test_a_stream_stalls_no_longer_than_it_may(folder: Path):
    """Long prompts arrive while it runs: with a short stall_s the longest gap is short, with a long one it is not."""
    longest = []
    for stall_s in (0.02, 5.0):
        with running(folder / "slow.gguf", window=2048, stall_s=stall_s, speculation=0) as engine:
            times = await gaps(engine, prompts=2)
            longest.append(float(np.quantile(times, 0.9)))
    assert longest[0] < 0.5 * longest[1]


@pytest.mark.parametrize("cells", [None, 4096], ids=["own cells", "shared cells"])
async def test_a_first_token_waits_for_no_token_of_others(cells: int | None, folder: Path):
    """llama.cpp decodes a prompt apart from answers that have cells of their own, so the prompt's pass comes first.

    In shared cells one pass over the weights does for all.
    """
    with running(folder / "random.gguf", window=1024, cache_tokens=cells, speculation=0, prefix_tokens=0) as engine:
        rows, decode = list[int](), engine._context.decode

        def counting() -> int:
            rows.append(engine._context.rows)
            return decode()

        engine._context.decode = counting  # type: ignore[method-assign]
        streams = [engine.generate(asked(sampling=Sampling(ignore_eos=True), max_tokens=900)) for _ in range(3)]
        for items in streams:
            await anext(items)
        _, done = await answer(engine, asked("b" * 150, max_tokens=1))
        for items in streams:
            await items.aclose()
    prompt = done.usage.prompt_tokens
    assert (prompt in rows, prompt + 3 in rows) == (cells is None, cells is not None)


async def test_quotes_are_drafted_and_verified(alphabet: Engine):
    """The answer repeats itself, so most of its tokens come several to a step; the text is what it is without."""
    text, done = await answer(alphabet, asked(max_tokens=500))
    assert text == ("abcdefghijklmnopqrstuvwxyz" * 20)[:500]
    assert done.usage.completion_tokens == 500
    stats = alphabet.stats()
    assert stats.accepted_tokens > 250
    assert stats.steps < 250


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(seed=3, temperature=0.7),
        Sampling(temperature=0, frequency_penalty=0.5),
        Sampling(seed=9, temperature=1.0, repeat_penalty=1.3, top_p=0.9),
    ],
)
async def test_drafts_change_no_answer(sampling: Sampling, folder: Path):
    """Token by token what it would have been, drawn or greedy, with and without penalties: drafts only save steps."""
    request = asked("ab ab ab the cat the cat", max_tokens=150, sampling=sampling, n=2)
    with running(folder / "random.gguf", speculation=0) as engine:
        plain, _ = await answers(engine, request)
    with running(folder / "random.gguf", speculation=16) as engine:
        drafted, _ = await answers(engine, request)
    assert drafted == plain


async def test_drafts_keep_to_grammars_and_tell_log_probabilities(folder: Path):
    """A draft is judged token by token like any draw, so what is constrained or told is what it is without drafts."""
    schema = {"type": "array", "minItems": 9, "maxItems": 9, "items": {"enum": ["the cat", "the cab"]}}
    request = asked(
        "the cat the cab the cat", response_format=JsonFormat(json_schema=schema), logprobs=2, max_tokens=120
    )
    told = []
    for speculation in (0, 16):
        with running(folder / "random.gguf", speculation=speculation) as engine:
            items = [item async for item in engine.generate(request)]
            told.append([item for piece in items[:-1] for item in piece.logprobs])
            tried = engine.stats().drafted_tokens
    assert tried > 0
    assert [one.chosen.data for one in told[0]] == [one.chosen.data for one in told[1]]
    assert np.allclose([one.chosen.logprob for one in told[0]], [one.chosen.logprob for one in told[1]], atol=0.05)


async def test_a_draft_ends_where_the_answer_ends(alphabet: Engine):
    """At a stop string, and at max_tokens, in the middle of a draft: nothing more is said or counted."""
    text, done = await answer(alphabet, asked(stop=("xyzabcdefghijk",), max_tokens=400))
    assert (text, done.usage.completion_tokens) == ("abcdefghijklmnopqrstuvw", 37)
    for limit in range(60, 80):
        text, done = await answer(alphabet, asked(max_tokens=limit))
        assert (len(text), done.usage.completion_tokens) == (limit, limit)
    _, done = await answer(alphabet, asked("abc"))  # to the end of the window
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 1024


async def test_what_was_drafted_and_not_said_is_not_kept(folder: Path):
    """The next turn finds exactly prompt and answer in the cache, whatever was tried meanwhile."""
    request = asked("ab ab ab ab", max_tokens=60)
    with running(folder / "random.gguf", speculation=16, prefix_tokens=512) as engine:
        await answer(engine, request)
        (kept,) = engine._prefixes._kept.values()
        assert engine._context.held(kept.sequence) == len(kept.tokens)
        assert engine.stats().drafted_tokens > 0
        text, _ = await answer(engine, request)
    with running(folder / "random.gguf", speculation=0) as engine:
        assert (await answer(engine, request))[0] == text


async def test_a_quiet_tenant_is_served_between_those_of_a_busy_one(folder: Path):
    """One slot, and ten requests of the busy one wait: the quiet one's is the second that is admitted."""
    with running(folder / "alphabet.gguf", slots=1, window=1024, queue=20) as engine:
        order: list[str] = []

        async def one(tenant: str) -> None:
            await answer(engine, asked(tenant=tenant, max_tokens=100))
            order.append(tenant)

        busy = [asyncio.create_task(one("busy")) for _ in range(10)]
        await until(lambda: engine.stats().waiting == 9)
        await one("quiet")
        await asyncio.gather(*busy)
        assert order.index("quiet") <= 2


async def test_an_answer_that_fails_takes_no_other_along(folder: Path):
    """A sampler that breaks ends its request, siblings included; the answers in the same batch go on."""
    with running(folder / "alphabet.gguf", window=1024) as engine:
        healthy = asyncio.create_task(answer(engine, asked(max_tokens=400)))
        items = engine.generate(asked("broken", n=2, max_tokens=900))
        await anext(items)

        def breaks() -> None:
            def fail(*_: object) -> int:
                raise EngineFailed("it broke")

            job = next(job for job in engine._steps._jobs if job.choice == 1)
            job.sampler.sample = fail  # type: ignore[method-assign]

        engine._steps.call(breaks)
        with pytest.raises(EngineFailed, match="it broke"):
            [item async for item in items]
        assert (await healthy)[1].usage.completion_tokens == 400
        assert engine.stats().failed == 1
