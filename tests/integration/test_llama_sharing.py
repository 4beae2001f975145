"""What requests share on real llama.cpp: beginnings that the cache kept, and the prompt of several answers."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import (
    GREEDY,
    alphabet_model,
    answer,
    answers,
    asked,
    before_each_batch,
    held,
    idle,
    running,
    sequences_held,
    until,
)
from gguf_factory import Shape, random_model, recurrent_model, sliding_model

from app.llama.engine import Engine
from app.messages import Delta, Generate, Message, Sampling

pytestmark = pytest.mark.integration

CELLS = {"own cells": {}, "shared cells": {"prefix_tokens": 512}}
SLOW = Shape(embedding=256, layers=4, heads=4, kv_heads=2, feed_forward=1024)  # prefill is felt


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "random.gguf", seed=35, quantized=False)


@pytest.fixture(params=CELLS)
def engine(gguf: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with running(gguf, window=512, speculation=0, **CELLS[request.param]) as engine:
        yield engine


async def test_the_next_turn_of_a_conversation_loads_only_what_is_new(engine: Engine):
    """Its prompt begins with the whole of the last one, and with as much of the answer as its tokens come again."""
    first = asked("a question of some length", max_tokens=20)
    _, done = await answer(engine, first)
    turn = (*first.messages, Message(role="assistant", content="an answer"), Message(role="user", content="and then?"))
    text, again = await answer(engine, first.model_copy(update={"messages": turn}))
    assert done.usage.cached_tokens == 0
    assert again.usage.cached_tokens >= done.usage.prompt_tokens
    with running(engine._model.path, window=512, prefix_tokens=0) as fresh:
        assert await answer(fresh, first.model_copy(update={"messages": turn})) != (text, again)  # timings differ
        assert (await answer(fresh, first.model_copy(update={"messages": turn})))[0] == text


async def test_conversations_share_their_system_prompt(engine: Engine):
    """Also while the first one is still being answered."""
    system = Message(role="system", content="You answer in the words of the sources, and in no others. " * 3)
    requests = [asked(max_tokens=30).model_copy(update={"messages": (system, *asked(word).messages)}) for word in "abc"]
    first = engine.generate(requests[0])
    await anext(first)
    _, second = await answer(engine, requests[1])
    await first.aclose()
    _, third = await answer(engine, requests[2])
    shared = (await engine.measure(requests[0], ())).prompt_tokens - 30
    assert min(second.usage.cached_tokens, third.usage.cached_tokens) > shared


async def test_the_same_prompt_again_decodes_one_token(engine: Engine):
    """Which gives the logits that the answer begins with: the text is the same."""
    request = asked("the same " * 10, max_tokens=25)
    before, _ = await answer(engine, request)
    steps = engine.stats().steps
    after, done = await answer(engine, request)
    assert (after, done.usage.cached_tokens) == (before, done.usage.prompt_tokens - 1)
    assert engine.stats().steps - steps == 25


async def test_what_a_departed_reader_loaded_is_not_lost(engine: Engine):
    """A client that gives up and tries again finds its prompt in the cache."""
    request = asked("patience " * 20, max_tokens=200)
    items = engine.generate(request)
    await anext(items)
    await items.aclose()
    await idle(engine)
    _, done = await answer(engine, request)
    assert done.usage.cached_tokens == done.usage.prompt_tokens - 1


async def test_under_pressure_old_prompts_make_room(gguf: Path):
    """A cache of two windows serves twenty prompts of half a window each, and the last ones are still there."""
    with running(gguf, window=256, slots=2, cache_tokens=512, prefix_tokens=512, prefix_memory_bytes=0) as engine:
        requests = [asked(f"{number:02}" * 60, max_tokens=20) for number in range(20)]
        for request in requests:
            await answer(engine, request)
        _, newest = await answer(engine, requests[-1])
        _, oldest = await answer(engine, requests[0])
        stats = engine.stats()
    assert newest.usage.cached_tokens == newest.usage.prompt_tokens - 1
    assert oldest.usage.cached_tokens < 20  # the template's own beginning
    assert stats.evictions >= 17
    assert stats.kept_tokens <= 512
    assert stats.failed == 0


async def test_what_left_the_cache_comes_back_bit_for_bit(gguf: Path):
    """Ten conversations through cells for one: their second turns load only what is new, and say what they would."""
    first = [asked(f"{number} knows " * 12, max_tokens=20) for number in range(10)]
    answered = Message(role="assistant", content="an answer")
    turns = [
        one.model_copy(update={"messages": (*one.messages, answered, Message(role="user", content="so?"))})
        for one in first
    ]
    with running(gguf, window=256, slots=2, prefix_tokens=256) as engine:
        asked_first = [await answer(engine, one) for one in first]
        assert engine.stats().stashed_bytes > 0
        again = [await answer(engine, one) for one in turns]
        assert engine.stats().kept_tokens <= 256
    for (_, before), (_, after) in zip(asked_first, again, strict=True):
        assert after.usage.cached_tokens >= before.usage.prompt_tokens
    with running(gguf, window=256, slots=2, prefix_tokens=0) as fresh:
        alone = [(await answer(fresh, one))[0] for one in first], [(await answer(fresh, one))[0] for one in turns]
    assert ([text for text, _ in asked_first], [text for text, _ in again]) == alone


async def test_full_admission_evicts_and_never_fails(gguf: Path):
    """All slots at once with prompts and answers that fill the cache to the last cell, over a cache full of others."""
    with running(gguf, window=256, slots=4, cache_tokens=1024) as engine:
        for wave in range(3):
            requests = [asked(f"{wave}{number}" * 50) for number in range(8)]  # as far as the window reaches
            results = await asyncio.gather(*[answer(engine, request) for request in requests])
            full = [done.usage.prompt_tokens + done.usage.completion_tokens == 256 for _, done in results]
            assert all(filled or done.finish_reason == "stop" for filled, (_, done) in zip(full, results, strict=True))
            assert any(full)
        stats = engine.stats()
        assert (stats.finished, stats.failed) == (24, 0)
        assert sequences_held(engine) == stats.kept_sequences


async def test_the_limit_of_what_is_kept_is_kept(gguf: Path):
    """prefix_tokens bounds it; 0 turns the prefix cache off."""
    for limit in (0, 100):
        with running(gguf, prefix_tokens=limit) as engine:
            for number in range(6):
                await answer(engine, asked(f"{number}" * 30, max_tokens=5))
            assert engine.stats().kept_tokens <= limit
            assert sequences_held(engine) == engine.stats().kept_sequences == (2 if limit else 0)


@pytest.mark.parametrize("kept", ["in the cache", "in memory"])
async def test_another_tenant_learns_nothing_from_counts_or_time(kept: str, tmp_path: Path):
    """A secret that one tenant asked about: the right guess looks like a wrong one, in tokens and in milliseconds.

    (Of this process's CPU, which others on the machine do not change.)

    The owner's own second request shows what there would be to see: it is several times as quick. The same where the
    secret left the cache for ordinary memory, because something else needed its place.
    """
    model = random_model(tmp_path / "slow.gguf", SLOW)

    def request(tenant: str, secret: str) -> object:
        return asked(f"The password is {secret}. " * 15, tenant=tenant, max_tokens=1)

    limit = 1024 if kept == "in the cache" else 400  # room for one of these prompts
    with running(model, window=1024, prefix_tokens=limit) as engine:

        async def probe(tenant: str, secret: str) -> tuple[float, int]:
            began = time.process_time()
            _, done = await answer(engine, request(tenant, secret))
            return time.process_time() - began, done.usage.cached_tokens

        right, wrong, own = [], [], []
        for number in range(5):
            secret, guess = f"open{number}", f"shut{number}"
            await probe("owner", secret)
            if kept == "in memory":
                await probe("owner", f"else{number}")
            own.append(await probe("owner", secret))
            right.append(await probe(f"spy{number}", secret))
            wrong.append(await probe(f"spy{number}b", guess))
        assert engine.stats().stashed_bytes > 0
    assert {cached for _, cached in (*right, *wrong)} == {0}
    assert min(cached for _, cached in own) > 250
    right_s, wrong_s, own_s = [min(seconds for seconds, _ in probes) for probes in (right, wrong, own)]
    assert own_s < 0.5 * right_s
    assert 0.6 < right_s / wrong_s < 1.6


async def test_several_answers_share_one_prefill(engine: Engine):
    """Four answers to a long prompt: it is loaded once, counted once, and each answer has its own end."""
    request = asked("many answers " * 15, n=4, max_tokens=12, sampling=Sampling(seed=5))
    before = engine.stats()
    texts, done = await answers(engine, request)
    assert len(set(texts)) == 4
    assert [end.finish_reason for end in done.ends] == ["length"] * 4
    assert done.usage.prompt_tokens == (await engine.measure(request, ())).prompt_tokens
    assert done.usage.completion_tokens == 48
    assert engine.stats().steps - before.steps == 12  # one of them loads the prompt, all four draw from it
    assert engine.stats().prompt_tokens - before.prompt_tokens == done.usage.prompt_tokens


async def test_neighbours_are_decoded_together(gguf: Path):
    """Of four answers the first ends: once nobody takes its place the last moves there, and all say what they would."""
    requests = [asked(f"{number} of four " * 3, max_tokens=20 + 20 * number) for number in range(4)]
    with running(gguf, window=512, speculation=0) as engine:
        alone = [(await answer(engine, request))[0] for request in requests]
    with running(gguf, window=512, speculation=0) as engine:
        places = set[tuple[int, ...]]()
        before_each_batch(engine, lambda: places.add(tuple(sorted(job.sequence for job in engine._steps._jobs))))
        with held(engine):
            together = [asyncio.create_task(answer(engine, request)) for request in requests]
            await until(lambda: engine.stats().slots_in_use == 4)
        assert [text for text, _ in await asyncio.gather(*together)] == alone
    assert {(0, 1, 2, 3), (0, 1, 2), (0, 1), (0,)} <= places


async def test_choices_are_the_same_for_the_same_seed(engine: Engine):
    """And the first one is what a request for one answer gets; without a seed they are new draws."""
    request = asked(n=3, max_tokens=20, sampling=Sampling(seed=11))
    texts, _ = await answers(engine, request)
    assert (await answers(engine, request))[0] == texts
    assert (await answer(engine, request.model_copy(update={"n": 1})))[0] == texts[0]
    drawn, _ = await answers(engine, asked(n=3, max_tokens=40, sampling=Sampling(temperature=2.0)))
    assert len({*drawn, *texts}) == 6


async def test_greedy_choices_are_all_alike(engine: Engine):
    """There is only one likeliest text."""
    texts, _ = await answers(engine, asked(n=3, max_tokens=20))
    assert texts == [(await answer(engine, asked(max_tokens=20)))[0]] * 3


async def test_each_choice_ends_by_itself(tmp_path: Path):
    """One may stop while others go on: here all stop at the same string, and none of it shows."""
    with running(alphabet_model(tmp_path / "alphabet.gguf")) as engine:
        texts, done = await answers(engine, asked(n=5, stop=("hij",), sampling=GREEDY))
        assert texts == ["abcdefg"] * 5
        assert [end.finish_reason for end in done.ends] == ["stop"] * 5
        assert engine.stats().slots_in_use == 0


@pytest.mark.parametrize("sizes", [{}, {"prefix_tokens": 0}, {"window": 128, "cache_tokens": 128}], ids=str)
async def test_more_answers_than_there_is_room_for_come_in_turns(sizes: dict[str, int], gguf: Path):
    """Sixteen from three slots, or from cells for two: as from sixteen slots, but for near-ties, and others get in."""
    request = asked("sixteen", n=16, max_tokens=40, sampling=Sampling(seed=5, ignore_eos=True))
    with running(gguf, slots=16) as engine:
        expected, ended = await answers(engine, request)
    with running(gguf, slots=3, **sizes) as engine:
        beside = asked("x", tenant="other", max_tokens=20)
        (texts, done), (other, _) = await asyncio.gather(answers(engine, request), answer(engine, beside))
        assert engine.stats().failed == 0
        await idle(engine)
        assert sequences_held(engine) == engine.stats().kept_sequences
        assert engine.stats().cells_reserved == 0
    assert other
    assert len(set(texts)) == 16
    assert sum(text == wanted for text, wanted in zip(texts, expected, strict=True)) > 8
    assert (done.usage, done.ends) == (ended.usage, ended.ends)


async def test_who_leaves_between_answers_takes_the_coming_ones_along(gguf: Path):
    """After the first ones are complete, before the last ones began."""
    with running(gguf, slots=2) as engine:
        left = threading.Event()
        before_each_batch(engine, lambda: engine.stats().generated_tokens > 3 * 20 and left.wait(30))
        items = engine.generate(asked(n=9, max_tokens=20, sampling=Sampling(seed=1, ignore_eos=True)))
        async for item in items:
            if isinstance(item, Delta) and item.choice >= 2:
                break
        await items.aclose()
        left.set()
        await idle(engine)
        assert engine.stats().cancelled == 1
        assert engine.stats().generated_tokens < 5 * 20
        assert sequences_held(engine) == engine.stats().kept_sequences


async def test_who_leaves_takes_all_choices_along(engine: Engine):
    """No sequence stays behind."""
    items = engine.generate(asked(n=6, max_tokens=300, sampling=Sampling(seed=1)))
    await anext(items)
    await items.aclose()
    await idle(engine)
    await until(lambda: sequences_held(engine) == engine.stats().kept_sequences)
    assert engine.stats().cells_reserved == 0


async def test_a_model_without_a_cell_for_each_token_is_prefilled(tmp_path: Path):
    """A recurrent state cannot be cut: nothing is kept and nothing drafted, and answers are what they are alone.

    Several answers still share one prefill, because a state can be copied whole.
    """
    with running(recurrent_model(tmp_path / "mamba.gguf"), speculation=16) as engine:
        requests = [asked(f"{number} ab ab ab " * number, max_tokens=20) for number in range(1, 6)]
        alone = [await answer(engine, request) for request in requests]
        together = await asyncio.gather(*[answer(engine, request) for request in requests])
        assert [text for text, _ in together] == [text for text, _ in alone]
        assert len({text for text, _ in alone}) > 1
        several, _ = await answers(engine, requests[0].model_copy(update={"n": 3}))
        assert several == [alone[0][0]] * 3
        stats = engine.stats()
        assert (stats.cached_tokens, stats.kept_sequences, stats.drafted_tokens, stats.failed) == (0, 0, 0, 0)


async def test_prompts_that_come_together_load_their_common_beginning_once(engine: Engine):
    """Four conversations with one system prompt arrive at once: three wait for the first to load it, and share it."""
    system = Message(role="system", content="You answer in the words of the sources, and in no others. " * 3)
    requests = [
        asked(max_tokens=10).model_copy(update={"messages": (system, *asked(word).messages)}) for word in "abcd"
    ]
    prompt_tokens = (await engine.measure(requests[0], ())).prompt_tokens
    results = await asyncio.gather(*[answer(engine, request) for request in requests])
    cached = sorted(done.usage.cached_tokens for _, done in results)
    assert cached[0] == 0
    assert min(cached[1:]) > prompt_tokens - 50
    with running(engine._model.path, window=512, prefix_tokens=0) as alone:
        assert [(await answer(alone, request))[0] for request in requests] == [text for text, _ in results]


async def test_who_waits_for_a_beginning_is_served_when_its_loader_leaves(gguf: Path):
    """The loader's client is gone before its prompt is in: what it loaded is shared, the rest loaded anew."""
    with running(gguf, window=2048, batch_tokens=32) as engine:
        beginning = "a long beginning of both " * 60
        loader = asyncio.create_task(answer(engine, asked(beginning + "1", max_tokens=5)))
        follower = asyncio.create_task(answer(engine, asked(beginning + "2", max_tokens=5)))
        await until(lambda: engine.stats().slots_in_use == 2)
        loader.cancel()
        assert (await follower)[1].usage.completion_tokens <= 5
        await idle(engine)
        assert engine.stats().cells_reserved == 0


@pytest.mark.parametrize("cells", CELLS)
async def test_a_window_that_slid_on_is_not_gone_back_to(cells: str, tmp_path: Path):
    """A layer that sees few tokens back keeps few: an early beginning is prefilled again, the newest is gone on from.

    So are answers those of an engine that keeps nothing, and several answers still share one prefill.
    """

    def request(text: str, n: int = 1) -> Generate:
        return asked(max_tokens=1 if n == 1 else 10, n=n).model_copy(update={"prompt": text, "messages": ()})

    sizes = {"window": 1024, "batch_tokens": 64, "slots": 2, "speculation": 0}
    begins = "a beginning; " * 5
    texts = [(begins + part).strip() for part in ("one; " * 100, "two; " * 100, "two; " * 120)]
    model = sliding_model(tmp_path / "sliding.gguf")
    with running(model, prefix_tokens=0, **sizes) as fresh:
        alone = [(await answers(fresh, request(text, 2)))[0] for text in texts]
    with running(model, **CELLS[cells] and {"prefix_tokens": 1024}, **sizes) as engine:
        ends = [(await answer(engine, request(text)))[1].usage for text in texts]
        assert ends[2].cached_tokens == ends[1].prompt_tokens
        assert [(await answers(engine, request(text, 2)))[0] for text in texts] == alone
        assert engine.stats().failed == 0
