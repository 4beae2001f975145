"""Real llama.cpp, beyond what every engine owes (test_engine_contract.py): random weights, and a fixed text."""

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import answer, asked, before_each_batch, until
from gguf_factory import chain_model, random_model, vocabulary

from app.deltas import Item, Stream
from app.errors import ContextTooLong, EngineFailed, InvalidRequest, Misconfigured
from app.llama.admission import Admission
from app.llama.answer import Answer
from app.llama.context import Context
from app.llama.engine import Engine, default_threads
from app.llama.job import Request
from app.llama.model import Model
from app.llama.openings import Openings
from app.llama.prefix import PrefixCache
from app.llama.sampling import Sampler
from app.llama.steps import Limits, StepLoop
from app.llama.vocabulary import Tokens
from app.messages import Delta, Done, JsonFormat, Sampling
from app.settings import LLMSettings

pytestmark = pytest.mark.integration

GREEDY = Sampling(temperature=0)
ALPHABET = b"abcdefghijklmnopqrstuvwxyz"
Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def random_gguf(folder: Path) -> Path:
    return random_model(folder / "random.gguf")


@pytest.fixture(scope="module")
def alphabet_gguf(folder: Path) -> Path:
    """Says the alphabet, over and over."""
    return said(folder, ALPHABET)


def said(folder: Path, text: bytes) -> Path:
    """A model that says these bytes, each of them once in it, over and over."""
    letters = vocabulary()[0]
    return chain_model(folder / f"{text.hex()}.gguf", [letters.index(byte_letter(byte)) for byte in text])


def byte_letter(byte: int) -> str:
    return vocabulary()[0][byte]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines, and closes them after the test."""
    with contextlib.ExitStack() as engines:

        def started(path: Path, **settings: object) -> Engine:
            engine = Engine(path, LLMSettings(**{"window": 256, "flush_s": 0.0, **settings}))
            engines.callback(engine.close)
            return engine

        yield started


async def first(items: AsyncIterator[Delta | Done]) -> Delta | Done:
    return await anext(items)


async def idle(engine: Engine) -> None:
    """Until the step loop has let go of everything."""
    await until(lambda: engine.stats().slots_in_use == 0)


def sequences_held(engine: Engine) -> int:
    """By llama.cpp's own account; only while the engine is idle."""
    return sum(engine._context.held(sequence) > 0 for sequence in range(engine._context.outputs))


async def test_requests_decoded_together_say_what_each_says_alone(start: Start, folder: Path):
    """Eight at a time, of different lengths, joining and leaving in the middle: greedy text is the same.

    Sums come out differently in other batches, so this holds where no two logits nearly tie: of these weights, on
    these requests, the best two are never closer than 0.07.
    """
    engine = start(random_model(folder / "no-ties.gguf", seed=35, quantized=False), batch_tokens=64)
    requests = [asked(f"{number} " * 5 * number, max_tokens=10 + 3 * number) for number in range(1, 9)]
    alone = [await answer(engine, request) for request in requests]
    together = await asyncio.gather(*[answer(engine, request) for request in requests])
    assert [text for text, _ in together] == [text for text, _ in alone]


async def test_a_stream_goes_on_while_a_long_prompt_loads(start: Start, alphabet_gguf: Path):
    """900 tokens of prompt in chunks of 32 are 29 steps, and the stream gets a token in each."""
    engine = start(alphabet_gguf, window=1024, batch_tokens=32)
    running = engine.generate(asked())
    await first(running)
    before = engine.stats().generated_tokens
    loading = engine.generate(asked("x" * 900, max_tokens=1))
    await first(loading)
    assert engine.stats().generated_tokens - before >= 29
    await running.aclose()


async def test_who_leaves_frees_slot_and_cells_for_the_next(start: Start, alphabet_gguf: Path):
    """One slot, and a cache that one request fills: the next is served as soon as the first reader is gone."""
    engine = start(alphabet_gguf, window=2048, slots=1)
    running = engine.generate(asked())
    await first(running)
    waiting = asyncio.create_task(answer(engine, asked(max_tokens=3)))
    await until(lambda: engine.stats().waiting == 1)
    await running.aclose()
    assert (await waiting)[0] == "abc"
    await idle(engine)
    stats = engine.stats()
    assert (stats.cells_reserved, stats.cancelled) == (0, 1)
    assert sequences_held(engine) == stats.kept_sequences


async def test_a_prompt_over_the_window_is_refused_with_both_numbers(start: Start, alphabet_gguf: Path):
    """Nothing is ever cut off in silence, neither prompt nor answer."""
    engine = start(alphabet_gguf)
    size = (await engine.measure(asked("x" * 300), ())).prompt_tokens
    with pytest.raises(ContextTooLong) as caught:
        await answer(engine, asked("x" * 300))
    assert (caught.value.prompt_tokens, caught.value.answer_tokens, caught.value.window) == (size, 1, 256)
    with pytest.raises(ContextTooLong, match="requested 270 tokens"):
        await answer(engine, asked(max_tokens=270 - (size - 300) - 2))


async def test_without_a_limit_the_answer_ends_at_the_window(start: Start, alphabet_gguf: Path):
    """Prompt and answer together fill it, to the token."""
    _, done = await answer(start(alphabet_gguf), asked())
    assert (done.finish_reason, done.usage.prompt_tokens + done.usage.completion_tokens) == ("length", 256)


async def test_a_delta_never_splits_a_character(start: Start, folder: Path):
    """The model says é and an emoji byte by byte."""
    engine = start(said(folder, "é😀!".encode()))
    items = [item async for item in engine.generate(asked(max_tokens=14))]
    assert "".join(item.text for item in items if isinstance(item, Delta)) == "é😀!é😀!"
    assert "�" not in "".join(item.text for item in items if isinstance(item, Delta))


async def test_the_first_delta_comes_at_once_and_the_others_are_joined(start: Start, alphabet_gguf: Path):
    """With a long flush_s: one token, which is read before there is a second, then all that were made meanwhile."""
    engine, read = start(alphabet_gguf), threading.Event()
    engine._steps._limits = engine._steps._limits._replace(flush_s=60.0)
    before_each_batch(engine, lambda: engine.stats().generated_tokens and read.wait(30))
    items = engine.generate(asked(max_tokens=40))
    sizes = [(await first(items)).tokens]
    read.set()
    sizes += [item.tokens async for item in items if isinstance(item, Delta)]
    assert sizes == [1, 39]


async def test_the_same_seed_gives_the_same_text(start: Start, random_gguf: Path):
    """And another seed another text; without a seed every answer is a new draw."""
    engine = start(random_gguf)
    texts = [
        (await answer(engine, asked(max_tokens=40, sampling=Sampling(temperature=1.5, seed=seed))))[0]
        for seed in (7, 7, 8, None, None)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-3}])
async def test_a_choice_of_one_token_is_greedy(only: dict[str, float], start: Start, random_gguf: Path):
    """top_k, top_p, min_p and temperature each narrow the draw."""
    engine = start(random_gguf)
    greedy, _ = await answer(engine, asked(max_tokens=30))
    narrowed, _ = await answer(engine, asked(max_tokens=30, sampling=Sampling(**{"temperature": 1.0, **only})))
    assert narrowed == greedy


async def test_a_grammar_draws_what_it_would_if_it_judged_all_tokens(start: Start, random_gguf: Path):
    """It leaves out those that begin with a character that may not come, which changes no draw."""
    schema = {
        "type": "object",
        "properties": {"naïve": {"type": "string", "maxLength": 9}, "of": {"enum": ["été", 7]}},
        "required": ["naïve", "of"],
    }
    engine = start(random_gguf, window=512)
    told: list[list[str]] = []
    for openings in (engine._model.openings, Openings(np.zeros(0, np.int32), np.zeros(engine._model.vocab_size, int))):
        engine._model.openings = openings
        requests = [
            asked("{", response_format=JsonFormat(json_schema=schema), max_tokens=80, sampling=Sampling(seed=seed))
            for seed in range(8)
        ]
        told.append([(await answer(engine, request))[0] for request in requests])
    assert told[0] == told[1]
    assert len({*told[0]}) > 1


@pytest.mark.parametrize(
    ("penalties", "kept"),
    [
        ({}, 90),
        ({"frequency_penalty": 2.0}, 27),  # 16.97 - 2·9 < 0: the tenth "a" loses against tokens never said
        ({"frequency_penalty": 2.0, "presence_penalty": 2.0}, 24),  # 16.97 - 2 - 2·8 < 0
        ({"repeat_penalty": 10.0}, 90),  # 1.697 is still the largest
        ({"repeat_penalty": 10.0, "presence_penalty": 2.0}, 3),  # 1.697 - 2 < 0 after the first time
    ],
)
async def test_penalties_lower_the_logits_of_what_was_said(
    penalties: dict[str, float], kept: int, start: Start, folder: Path
):
    """The model says abc with a logit of 16.97, all else has 0: the arithmetic shows in where it departs from it."""
    engine = start(said(folder, b"abc"))
    text, _ = await answer(engine, asked(max_tokens=90, sampling=Sampling(temperature=0, **penalties)))
    expected = "abc" * 30
    same = next((at for at, pair in enumerate(zip(text, expected, strict=False)) if pair[0] != pair[1]), 90)
    assert same == kept


async def test_a_batch_that_fails_ends_its_requests_and_no_others(start: Start, alphabet_gguf: Path):
    """A token outside the vocabulary makes llama.cpp refuse the batch; the loop goes on."""
    engine = start(alphabet_gguf)
    stream = Stream(asyncio.get_running_loop())
    engine._steps.enter(request(engine._model, np.array([10**6], np.int32), 5, stream))
    (failure,) = await stream.take()
    assert isinstance(failure, EngineFailed)
    assert (await answer(engine, asked(max_tokens=3)))[0] == "abc"
    engine.check()
    stats = engine.stats()
    assert (stats.failed, stats.finished, stats.cells_reserved) == (1, 1, 0)


def request(model: Model, prompt: Tokens, answer_tokens: int, stream: Stream) -> Request:
    """One answer to be drawn."""
    asked = Request(prompt, answer_tokens, stream)
    asked.answer(Answer(), Sampler(Sampling(seed=1), model, answer_tokens))
    return asked


async def test_without_room_in_the_cache_the_youngest_makes_way(random_gguf: Path):
    """Admission reserves room, so this takes one that promises more cells than there are: the elder answer goes on."""
    model = Model(random_gguf)
    context = Context(model, cells=256, sequences=2, batch_tokens=64, threads=1)
    prefixes = PrefixCache(context, sequences=2, limit=0)
    steps = StepLoop(model, context, Admission(slots=2, cells=10**6, queue=0), prefixes, Limits())
    streams = [Stream(asyncio.get_running_loop()) for _ in range(2)]
    with steps._change:  # at the same time
        for token, stream in enumerate(streams, 65):
            steps.enter(request(model, np.full(100, token, np.int32), 100, stream))
    elder, younger = [await last(stream) for stream in streams]
    assert isinstance(younger, EngineFailed)
    assert isinstance(elder, Done)
    assert elder.usage.completion_tokens > 28
    steps.close()
    context.close()


async def last(stream: Stream) -> Item:
    while isinstance(item := (await stream.take())[-1], Delta):
        pass
    return item


async def test_many_requests_and_departures_leave_nothing_behind(start: Start, random_gguf: Path):
    """200 of all lengths, many of which leave between two pieces or at any other moment: all ends empty."""
    engine = start(random_gguf, queue=200, batch_tokens=64, cache_tokens=1024)
    dice = random.Random(1)

    async def one(number: int) -> None:
        request = asked(
            "word " * dice.randrange(40),
            max_tokens=dice.randrange(1, 40),
            sampling=Sampling(temperature=dice.choice([0, 1]), frequency_penalty=dice.choice([0, 1]), seed=number),
            stop=dice.choice([(), ("e",), ("zz", "th")]),
        )
        patience, deadline_s = dice.choice([0, 3, 10**6, 10**6, 10**6]), dice.choice([None, None, dice.random()])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s), contextlib.aclosing(engine.generate(request)) as items:
                async for _ in items:
                    if patience == 0:
                        break
                    patience -= 1

    await asyncio.gather(*map(one, range(200)))
    await idle(engine)
    stats = engine.stats()
    assert (stats.waiting, stats.cells_reserved, stats.failed) == (0, 0, 0)
    assert sequences_held(engine) == stats.kept_sequences
    assert stats.finished + stats.cancelled <= 200  # some left before they entered
    assert min(stats.finished, stats.cancelled) > 20


async def test_closing_fails_what_runs_and_what_waits(start: Start, alphabet_gguf: Path):
    """Nobody is left waiting for ever."""
    engine = start(alphabet_gguf, window=2048, slots=1)
    running = engine.generate(asked())
    await first(running)
    waiting = asyncio.create_task(answer(engine, asked()))
    await until(lambda: engine.stats().waiting == 1)
    engine.close()
    with pytest.raises(EngineFailed, match="closed"):
        await waiting
    with pytest.raises(EngineFailed, match="closed"):
        [item async for item in running]
    with pytest.raises(EngineFailed, match="closed"):
        await answer(engine, asked())
    with pytest.raises(EngineFailed, match="ended"):
        engine.check()


async def test_a_step_that_takes_too_long_is_unhealthy(start: Start, random_gguf: Path):
    """The limit is set so low here that any step is too long."""
    engine = start(random_gguf, window=2048, step_timeout_s=1e-9)
    running = asyncio.create_task(answer(engine, asked()))
    with pytest.raises(EngineFailed, match="has not come back"):
        await until(lambda: engine.check() or running.done())
    running.cancel()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ()}, "messages"),
        ({"prompt": "and messages"}, "messages"),
        ({"messages": (), "prompt": ""}, "prompt"),
        ({"stop": ("",)}, "stop"),
    ],
)
async def test_an_impossible_request_is_the_callers_error(
    fields: dict[str, object], param: str, start: Start, alphabet_gguf: Path
):
    """With the parameter at fault."""
    with pytest.raises(InvalidRequest) as caught:
        await answer(start(alphabet_gguf), asked(**fields))
    assert caught.value.param == param


async def test_texts_are_measured_alone(start: Start, random_gguf: Path):
    """For planning a prompt: `the` is one token of this vocabulary, a marker counts as letters."""
    measure = await start(random_gguf).measure(asked(), ("the", "", "<|im_end|>"))
    assert (measure.text_tokens, measure.window) == ((1, 0, 10), 256)


async def test_chats_are_shown_by_the_template_that_is_set(start: Start, random_gguf: Path, tmp_path: Path):
    """In place of the model's own: `the` alone is one token."""
    (tmp_path / "bare.jinja").write_text("{{ messages[0].content }}")
    own, bare = [start(random_gguf, chat_template=style) for style in ("auto", str(tmp_path / "bare.jinja"))]
    assert (await bare.measure(asked("the"), ())).prompt_tokens == 1
    assert (await own.measure(asked("the"), ())).prompt_tokens > 1


async def test_the_card_tells_what_is_served(start: Start, random_gguf: Path):
    """Name and window are the settings', the rest is the file's."""
    card = start(random_gguf, name="mine").card()
    assert (card.name, card.window, card.description) == ("mine", 256, "a test model")
    assert card.file_bytes > 100_000
    assert card.parameters > 90_000


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"window": 4096}, "llm.window"),
        ({"gpu_layers": -1}, "llm.gpu_layers"),
        ({"chat_template": "/no.jinja"}, "llm.chat_template"),
    ],
)
def test_settings_that_the_model_cannot_honour_stop_the_start(
    settings: dict[str, Any], setting: str, start: Start, random_gguf: Path
):
    """More window than it was trained for; layers on a GPU that this build cannot use; a template that is not there."""
    with pytest.raises(Misconfigured) as caught:
        start(random_gguf, **settings)
    assert caught.value.setting == setting


def test_a_damaged_file_stops_the_start_with_the_reason(start: Start, random_gguf: Path, tmp_path: Path):
    """In llama.cpp's own words, and nothing on stderr."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(random_gguf.read_bytes()[:-5000])
    with pytest.raises(Misconfigured, match=r"does not load \(.*(bounds|corrupted)"):
        start(damaged)


def test_small_models_decode_on_one_thread():
    """A large one takes the CPUs that the process may use."""
    assert default_threads(10**7) == 1
    assert default_threads(10**9) == len(os.sched_getaffinity(0))


def test_llama_cpp_speaks_through_logging(start: Start, random_gguf: Path, caplog: pytest.LogCaptureFixture, capfd):
    """At debug level; nothing goes to the terminal."""
    with caplog.at_level("DEBUG", logger="app.llama.model"):
        start(random_gguf)
    assert any("llama" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")
