"""How the engine shares its time, on real llama.cpp: stalls, turns, drafts."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from engines import GREEDY, alphabet_model, answer, answers, asked, before_each_batch, held, running, until
from gguf_factory import random_model

from app.errors import EngineFailed
from app.llama.engine import Engine
from app.messages import JsonFormat, Sampling

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    alphabet_model(folder / "alphabet.gguf")
    random_model(folder / "random.gguf", seed=35, quantized=False)
    return folder


@pytest.fixture
def alphabet(folder: Path) -> Iterator[Engine]:
    with running(folder / "alphabet.gguf", window=1024, speculation=16) as engine:
        yield engine


def counted(engine: Engine, row_s: float = 0.0) -> list[int]:
    """The rows of each batch that it will decode. row_s: what each takes at the least."""
    rows = list[int]()

    def look() -> None:
        rows.append(engine._context.rows)
        time.sleep(row_s * rows[-1])

    before_each_batch(engine, look)
    return rows


async def test_a_stream_stalls_no_longer_than_it_may(folder: Path):
    """Long prompts arrive while it runs: they load in small parts with a short stall_s, in large ones with a long one.

    Each part is a stall. On any machine a row takes 0.2 ms here, or more: in 0.02 s there are 100 of them, or fewer.
    """
    usual = []
    for stall_s in (0.02, 5.0):
        with running(folder / "random.gguf", window=2048, stall_s=stall_s, speculation=0) as engine:
            rows = counted(engine, row_s=0.0002)
            items = engine.generate(asked(sampling=Sampling(ignore_eos=True), max_tokens=900))
            await anext(items)
            for number in range(2):
                await answer(engine, asked(f"{number}" * 1500, max_tokens=1))
            assert engine.stats().finished == 2, "the stream runs all the while"
            await items.aclose()
            usual.append(median(count for count in rows if count > 1))
    assert usual[0] < 0.5 * usual[1]


@pytest.mark.parametrize("cells", [None, 4096], ids=["own cells", "shared cells"])
async def test_a_first_token_waits_for_no_token_of_others(cells: int | None, folder: Path):
    """llama.cpp decodes a prompt apart from answers that have cells of their own, so the prompt's pass comes first.

    In shared cells one pass over the weights does for all.
    """
    with running(folder / "random.gguf", window=1024, cache_tokens=cells, speculation=0, prefix_tokens=0) as engine:
        rows = counted(engine)
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

        with held(engine):
            tasks = [asyncio.create_task(one("busy")) for _ in range(10)]
            await until(lambda: engine.stats().waiting == 9)
            tasks.append(asyncio.create_task(one("quiet")))
            await until(lambda: engine.stats().waiting == 10)
        await asyncio.gather(*tasks)
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
