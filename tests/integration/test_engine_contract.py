"""What every engine owes to gateways, said once: llama.cpp passes it in `make test`, real vLLM in `make vllm-test`.

The model says "abcdefgéhi<tool_call>xyz" over and over, whatever it is asked; its adapters say one letter.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from engines import answer, answers, asked, until
from gateway import whole
from gguf_factory import CHATML, chain_model, constant_adapter, vocabulary
from hf_factory import chain_folder, constant_lora

from app.desired import Serving
from app.errors import ContextTooLong, EngineFailed, InvalidRequest, ModelNotFound, Overloaded
from app.messages import Delta, Done, Generate, JsonFormat, NamedTool, Sampling, Tool
from app.registry import Registry
from app.settings import LLMSettings, Settings
from app.vllm.settings import VllmSettings

pytestmark = pytest.mark.integration

TEMPLATE = (
    '{% if tools %}<tools>{{ tools | tojson }}</tools> <tool_call>{"name": x, "arguments": y}{% endif %}' + CHATML
)
TEXT = "abcdefgéhi<tool_call>xyz"
WINDOW, SLOTS, QUEUE = 1024, 2, 1
COMMON = {"name": "m", "window": WINDOW, "slots": SLOTS, "queue": QUEUE, "flush_s": 0.02}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["c"]}}, "required": ["unit"], "additionalProperties": False}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["zoë"]}, "age": {"type": "integer", "minimum": 7, "maximum": 7}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = Tool(name="weather", parameters=UNIT)
STRICT = Tool(name="weather", parameters=UNIT, strict=True)


class Subject(NamedTuple):
    """A replica, its engine, and the folder in which adapters lie."""

    settings: LLMSettings | VllmSettings
    replica: Any
    engine: Any
    folder: Path


def said() -> list[int]:
    names = vocabulary()[0]
    return [*"abcdefgé".encode(), *b"hi", names.index("<tool_call>"), *b"xyz"]


@contextmanager
def llama_cpp(folder: Path, home: Path) -> Iterator[tuple[Any, Any]]:
    from deployments.llama_cpp import LlamaCpp

    chain_model(folder / "m.gguf", said(), template=TEMPLATE)
    settings = LLMSettings(model=str(folder / "m.gguf"), **COMMON, threads=1)
    replica = LlamaCpp(settings, home, follow=True)
    yield settings, replica, replica.shelf.warm()["m"]
    replica.close()


@contextmanager
def vllm(folder: Path, home: Path) -> Iterator[tuple[Any, Any]]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed in this environment")
    from deployments.vllm import Vllm

    chain_folder(folder / "m", said(), template=TEMPLATE)
    small = {"dtype": "float32", "kv_cache_bytes": 64 * 2**20, "enforce_eager": True, "max_lora_rank": 8}
    settings = VllmSettings(engine="vllm", model=str(folder / "m"), **COMMON, **small)
    replica = Vllm(settings, home, follow=True)
    yield settings, replica, replica.engine
    replica.close()


@pytest.fixture(
    scope="module", params=[llama_cpp, pytest.param(vllm, marks=pytest.mark.vllm)], ids=lambda kind: kind.__name__
)
async def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres_home: Path
) -> AsyncIterator[Subject]:
    """With the adapters `x` and `end`, which ends every answer at once; and `y`, which nobody has loaded."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    for name, token in {"x": ord("x"), "y": ord("y"), "end": vocabulary()[0].index("<|im_end|>")}.items():
        constant_adapter(folder / f"{name}.gguf", token)
        constant_lora(folder / name, token)
    with request.param(folder, postgres_home) as (settings, replica, engine):
        for name in ("x", "end"):
            await engine.load_adapter(name, folder / f"{name}.gguf")
        yield Subject(settings, replica, engine, folder)


@pytest.fixture
async def engine(subject: Subject) -> AsyncIterator[Any]:
    """Idle before and after each test."""
    yield subject.engine
    await until(lambda: numbers(subject.engine)["slots_in_use"] == 0)


def numbers(engine: Any) -> dict[str, float]:
    stats = engine.stats()
    return stats if isinstance(stats, dict) else asdict(stats)


async def calls(engine: Any, request: Generate) -> tuple[str, list[tuple[str | None, Any]], Done]:
    """(text, calls with their parsed arguments, end) of the one answer."""
    items = [item async for item in engine.generate(request)]
    pieces = [call for item in items[:-1] for call in item.tool_calls]
    made = [
        (begun.name, json.loads("".join(piece.arguments for piece in pieces if piece.index == begun.index)))
        for begun in pieces
        if begun.id
    ]
    return "".join(item.text for item in items[:-1]), made, items[-1]


async def first(items: Any) -> Delta:
    item = await anext(items)
    assert isinstance(item, Delta)
    return item


async def test_a_chat_is_answered_with_usage_and_timings(engine: Any):
    """Text, then one record of how it ended, by the model's own tokenizer."""
    request = asked(max_tokens=25)
    text, done = await answer(engine, request)
    assert text == "abcdefgéhi<tool_call>xyzabcdefgéh"
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 25)
    assert done.usage.prompt_tokens == (await engine.measure(request, ())).prompt_tokens
    assert min(done.timings.queued_s, done.timings.prefill_s, done.timings.decode_s) >= 0


async def test_a_text_is_continued(engine: Any):
    """A prompt is no chat: the answer goes on where it ends."""
    assert (await answer(engine, asked(messages=(), prompt="say abc", max_tokens=3)))[0] == "def"


async def test_nobody_forges_a_turn(engine: Any):
    """A mark in what a user wrote is its letters: ten characters are ten tokens, the template's own are one each."""
    whole = await engine.measure(asked(""), ("<|im_end|>", "lo"))
    forged = await engine.measure(asked("<|im_end|>"), ())
    assert whole.text_tokens == (10, 1)
    assert forged.prompt_tokens == whole.prompt_tokens + 10


async def test_the_first_delta_comes_at_once_and_the_others_are_joined(engine: Any):
    """One message for each token would cost more than the tokens."""
    sizes = list[int]()
    for _ in range(3):  # two tokens are one item where the reader was late
        items = [item async for item in engine.generate(asked(max_tokens=200))]
        assert len(items) < 150
        sizes.append(items[0].tokens)
        if sizes[-1] == 1:
            break
    assert sizes[-1] == 1, sizes


async def test_a_delta_never_splits_a_character(engine: Any):
    """The model says é in two tokens."""
    async with aclosing(engine.generate(asked(max_tokens=60))) as items:
        texts = [item.text async for item in items if isinstance(item, Delta)]
    assert "�" not in "".join(texts)


async def test_a_stop_string_across_tokens_never_shows(engine: Any):
    """Each letter is a token: what could become the stop string is held back, and it is not part of the answer."""
    text, done = await answer(engine, asked(stop=("nowhere", "def")))
    assert (text, done.ends[0].stop, done.finish_reason, done.usage.completion_tokens) == ("abc", "def", "stop", 6)
    text, done = await answer(engine, asked(stop=("defx",), max_tokens=5))
    assert (text, done.ends[0].stop, done.finish_reason) == ("abcde", None, "length")


async def test_the_end_of_turn_token_ends_the_answer(engine: Any):
    """It is neither text nor counted; `ignore_eos` never draws it."""
    text, done = await answer(engine, asked(adapter="end"))
    assert (text, done.finish_reason, done.usage.completion_tokens) == ("", "stop", 0)
    endless = asked(adapter="end", max_tokens=9, sampling=Sampling(temperature=0, ignore_eos=True))
    assert (await answer(engine, endless))[1].finish_reason == "length"


async def test_a_prompt_over_the_window_is_refused_with_both_numbers(engine: Any):
    """Nothing is ever cut off in silence, neither prompt nor answer; what clips is told so."""
    size = (await engine.measure(asked("x" * WINDOW), ())).prompt_tokens
    with pytest.raises(ContextTooLong) as caught:
        await answer(engine, asked("x" * WINDOW))
    assert (caught.value.prompt_tokens, caught.value.answer_tokens, caught.value.window) == (size, 1, WINDOW)
    with pytest.raises(ContextTooLong, match=f"requested {WINDOW + 1} tokens"):
        await answer(engine, asked("x" * 900, max_tokens=WINDOW + 1 - (size - WINDOW + 900)))
    _, done = await answer(engine, asked("x" * 960, max_tokens=WINDOW, clip=True))
    assert (done.finish_reason, done.usage.prompt_tokens + done.usage.completion_tokens) == ("length", WINDOW)


async def test_log_probabilities_are_the_models_own(engine: Any):
    """Of 273 tokens one has a logit of 17 and the others 0; what was asked of the sampler does not count."""
    request = asked(logprobs=2, max_tokens=3, sampling=Sampling(temperature=0.5, top_k=1))
    items = [item async for item in engine.generate(request)]
    found = [each for item in items[:-1] for each in item.logprobs]
    assert [each.chosen.data for each in found] == [b"a", b"b", b"c"]
    for each in found:
        assert each.chosen == each.top[0]
        assert len(each.top) == 2
        assert each.chosen.logprob == pytest.approx(-272 * math.exp(-17), abs=1e-3)
        assert each.top[1].logprob == pytest.approx(-17.0, abs=0.5)


async def test_biases_change_what_comes(engine: Any):
    """A token may be forbidden, or all but one; a token that there is not is refused by name."""
    assert (await answer(engine, asked(max_tokens=1, sampling=Sampling(logit_bias={ord("a"): -100}))))[0] != "a"
    biased = Sampling(temperature=0, logit_bias={ord("z"): 100})
    assert (await answer(engine, asked(sampling=biased, max_tokens=4)))[0] == "zzzz"
    with pytest.raises(InvalidRequest, match="names token 99999") as refused:
        await answer(engine, asked(sampling=Sampling(logit_bias={99999: 1})))
    assert refused.value.param == "logit_bias"


async def test_the_same_seed_gives_the_same_text(engine: Any):
    """And another seed another text."""
    hot = [asked(max_tokens=120, sampling=Sampling(temperature=2, seed=seed)) for seed in (7, 7, 8)]
    texts = [(await answer(engine, request))[0] for request in hot]
    assert texts[0] == texts[1] != texts[2]


async def test_several_answers_are_told_apart(engine: Any):
    """More than there are slots for, each with its own end; their prompt counts once."""
    texts, done = await answers(engine, asked(n=3, max_tokens=5))
    assert texts == ["abcde"] * 3
    assert [end.finish_reason for end in done.ends] == ["length"] * 3
    assert done.usage.completion_tokens == 15
    assert done.usage.prompt_tokens == (await engine.measure(asked(), ())).prompt_tokens


async def test_an_answer_has_the_form_that_was_asked_for(engine: Any):
    """JSON by a schema, and any object, from a model that would rather say the alphabet."""
    text, done = await answer(engine, asked(response_format=JsonFormat(json_schema=PERSON)))
    assert json.loads(text) == {"name": "zoë", "age": 7}
    assert done.finish_reason == "stop"
    text, _ = await answer(engine, asked(response_format=JsonFormat(), max_tokens=60))
    assert text.startswith("{")


async def test_what_cannot_be_enforced_is_refused_by_its_name(engine: Any):
    """Before the first token, and as the caller's fault."""
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    with pytest.raises(InvalidRequest) as refused:
        await answer(engine, asked(response_format=JsonFormat(json_schema=schema)))
    assert "json_schema" in str(refused.value.param)


@pytest.mark.parametrize("choice", ["required", NamedTool(name="weather")])
async def test_a_call_that_is_asked_for_comes(engine: Any, choice: Any):
    """With arguments that satisfy the schema, and an end that says so."""
    request = asked(tools=(TOOL,), tool_choice=choice, parallel_tool_calls=False)
    text, made, done = await calls(engine, request)
    assert (text, made, done.finish_reason) == ("", [("weather", {"unit": "c"})], "tool_calls")


async def test_a_call_of_a_strict_function_is_held_to_its_schema(engine: Any):
    """The model begins it and would go on with nonsense; what came before it is free."""
    request = asked(tools=(STRICT,), parallel_tool_calls=False)
    assert (await calls(engine, request))[:2] == ("abcdefgéhi", [("weather", {"unit": "c"})])
    text, made, done = await calls(engine, asked(tools=(TOOL,), max_tokens=18))
    assert (text, made, done.finish_reason) == ("abcdefgéhi<tool_call>xyzabc", [], "length")


async def test_each_request_is_answered_by_its_adapter(engine: Any):
    """Together in one engine, on one copy of the weights."""
    assert engine.adapters() == ("x", "end")
    requests = [asked(max_tokens=7, adapter=adapter) for adapter in (None, "x", "end")]
    texts = [text for text, _ in await asyncio.gather(*[answer(engine, request) for request in requests])]
    assert texts == ["abcdefg", "x" * 7, ""]


async def test_a_retrained_adapter_answers_under_its_new_name(subject: Subject, engine: Any):
    """It is there when the call returns, and gone when it was unloaded; the other one stays as it is."""
    await engine.load_adapter("y", subject.folder / "y.gguf")
    with pytest.raises(InvalidRequest, match="loaded already"):
        await engine.load_adapter("y", subject.folder / "x.gguf")
    assert (await answer(engine, asked(max_tokens=3, adapter="y")))[0] == "yyy"
    assert (await answer(engine, asked(max_tokens=3, adapter="x")))[0] == "xxx"
    await engine.unload_adapter("y")
    with pytest.raises(ModelNotFound, match="m:y") as refused:
        await answer(engine, asked(adapter="y"))
    assert refused.value.known == ("m", "m:x", "m:end")


async def test_unloading_lets_answers_finish_and_refuses_new_ones(subject: Subject, engine: Any):
    """What runs on it ends on it."""
    await engine.load_adapter("y", subject.folder / "y.gguf")
    running = engine.generate(asked(adapter="y", max_tokens=200))
    text = (await first(running)).text
    unloading = asyncio.create_task(engine.unload_adapter("y"))
    await until(lambda: "y" not in engine.adapters())
    with pytest.raises(ModelNotFound):
        await answer(engine, asked(adapter="y"))
    text += "".join([item.text async for item in running if isinstance(item, Delta)])
    assert text == "y" * 200
    await unloading


async def test_what_is_no_adapter_is_refused_with_the_reason(subject: Subject, engine: Any):
    """And the engine goes on."""
    (subject.folder / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    broken = constant_lora(subject.folder / "broken", 0)
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InvalidRequest, match="broken") as refused:
        await engine.load_adapter("broken", subject.folder / "broken.gguf")
    assert refused.value.param == "adapter"
    assert engine.adapters() == ("x", "end")
    assert (await answer(engine, asked(max_tokens=3, adapter="x")))[0] == "xxx"


async def test_who_leaves_frees_the_slot_for_the_next(engine: Any):
    """Both slots are taken for long; the next is served as soon as one reader is gone."""
    before = numbers(engine)["cancelled"]
    running = [engine.generate(asked(max_tokens=900)) for _ in range(SLOTS)]
    for items in running:
        await first(items)
    waiting = asyncio.create_task(answer(engine, asked(max_tokens=3)))
    await until(lambda: numbers(engine)["waiting"] == 1)
    await running[0].aclose()
    assert (await waiting)[0] == "abc"
    await running[1].aclose()
    assert numbers(engine)["cancelled"] == before + 2


async def test_a_reader_who_gives_up_waiting_leaves_the_queue(engine: Any):
    """A cancelled task takes its request along."""
    running = [engine.generate(asked(max_tokens=900)) for _ in range(SLOTS)]
    for items in running:
        await first(items)
    waiting = asyncio.create_task(answer(engine, asked()))
    await until(lambda: numbers(engine)["waiting"] == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: numbers(engine)["waiting"] == 0)
    for items in running:
        await items.aclose()


async def test_a_full_queue_refuses_before_the_first_token(engine: Any):
    """Two decode, one waits, the fourth is told to come again."""
    running = [engine.generate(asked(max_tokens=900)) for _ in range(SLOTS)]
    for items in running:
        await first(items)
    waiting = asyncio.create_task(answer(engine, asked(max_tokens=1)))
    await until(lambda: numbers(engine)["waiting"] == 1)
    with pytest.raises(Overloaded) as refused:
        await answer(engine, asked())
    assert (refused.value.waiting, refused.value.limit) == (1, QUEUE)
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1.0
    for items in running:
        await items.aclose()
    await waiting


async def test_a_tenant_learns_nothing_of_anothers_prompts(engine: Any):
    """The same long prompt again is mostly cached, for the tenant who sent it, and with the weights that read it."""
    content = "the same words " * 40
    cached = [
        (await answer(engine, asked(content, max_tokens=1, **who)))[1].usage.cached_tokens
        for who in ({"tenant": "a"}, {"tenant": "a"}, {"tenant": "b"}, {"tenant": "a", "adapter": "x"})
    ]
    size = (await engine.measure(asked(content), ())).prompt_tokens
    assert cached[0] == cached[2] == cached[3] == 0
    assert size > cached[1] >= size // 2


async def test_the_card_tells_what_is_served(engine: Any):
    """Its name, its window, its size."""
    card = engine.card()
    assert (card.name, card.window, card.loaded) == ("m", WINDOW, True)
    assert card.parameters is not None
    assert card.parameters > 0
    engine.check()


async def test_a_replica_tells_what_it_serves_and_where_it_is_from(subject: Subject):
    """Gateways ask every engine the same; a model that there is not is not found."""
    replica = subject.replica
    (card,) = await replica.cards()
    (file,) = await replica.files()
    assert card == await replica.card()
    assert (card.name, file.name, file.exists) == ("m", "m", True)
    assert file.memory >= file.size > 0
    await replica.load("m")
    await replica.check_layers("m", file.layers)
    with pytest.raises(InvalidRequest):
        await replica.check_layers("m", 1)
    for ask in (
        replica.load("other"),
        replica.measure(asked(model="other"), ()),
        anext(replica.generate(asked(model="o"))),
    ):
        with pytest.raises(ModelNotFound):
            await ask
    assert (await replica.stats())["slots"] == SLOTS


async def test_a_retrained_adapter_is_served_under_its_new_name(subject: Subject, pool: asyncpg.Pool):
    """From the registry, as soon as a request names it; what is promoted is there before anybody asks."""
    registry = Registry(pool, subject.replica._home)
    await subject.replica.check_health()
    told = []
    for version, letter in (("v1", "x"), ("v2", "y")):
        await registry.add("m", version, subject.folder / f"{letter}.gguf")
        told.append((await answer(subject.replica, asked(max_tokens=3, adapter=version)))[0])
    assert told == ["xxx", "yyy"]
    await registry.add("m", "v3", subject.folder / "x.gguf")
    async with registry.change() as editing:
        await editing.serve(Serving(model="m", champion="v3", previous="v2"))
    async with asyncio.timeout(20):
        await until(lambda: "v3" in subject.engine.adapters())
    with pytest.raises(ModelNotFound, match="m:v4"):
        await answer(subject.replica, asked(adapter="v4"))


async def test_a_gateway_does_not_know_which_engine_answers(subject: Subject, pool: asyncpg.Pool):
    """OpenAI's JSON in and out, on every route that asks the engine."""
    home = subject.replica._home
    ask = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "rag": False}
    async with whole(home, Settings(llm=subject.settings), subject.replica) as gateway, gateway.http() as http:
        told = (await http.post("/v1/chat/completions", json=ask | {"max_tokens": 9, "logprobs": True})).json()
        assert told["choices"][0]["message"]["content"] == "abcdefgé"
        assert len(told["choices"][0]["logprobs"]["content"]) == told["usage"]["completion_tokens"] == 9
        streamed = await http.post("/v1/chat/completions", json=ask | {"max_tokens": 9, "stream": True})
        lines = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        deltas = [line["choices"][0]["delta"] for line in lines if line["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "abcdefgé"
        function = {"name": "weather", "parameters": UNIT}
        tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        called = (await http.post("/v1/chat/completions", json=ask | tools | {"parallel_tool_calls": False})).json()
        (call,) = called["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"unit": "c"}
        long = await http.post("/v1/chat/completions", json=ask | {"max_tokens": WINDOW})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert (await http.post("/v1/chat/completions", json=ask | {"model": "m:none"})).status_code == 404
        assert [one["id"] for one in (await http.get("/v1/models")).json()["data"]][:2] == ["m", "m:base"]
        assert (await http.get("/models")).json()["models"]
        assert (await http.get("/health")).status_code == 200


async def test_a_closed_replica_is_unhealthy(subject: Subject):
    """The last of all, since it ends the engine."""
    await subject.replica.check_health()
    subject.replica.close()
    with pytest.raises(EngineFailed, match="closed"):
        await subject.replica.check_health()
