"""The deployment class, as Serve would use it, without Serve; and the trial that it makes first."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from gguf_factory import Shape, random_model

from app.errors import EngineFailed, Misconfigured, ModelNotFound
from app.llama.probe import probe
from app.messages import Delta, Done, Generate, Message, Sampling
from app.settings import FurtherModel, LLMSettings
from deployments.llama_cpp import LlamaCpp

pytestmark = pytest.mark.integration

ASKED = Generate(
    request_id="r",
    model="mindfu-demo",
    messages=(Message(role="user", content="hi"),),
    sampling=Sampling(temperature=0),
    max_tokens=20,
)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "model.gguf")


@pytest.fixture
def replica(gguf: Path, tmp_path: Path) -> Iterator[LlamaCpp]:
    replica = LlamaCpp(LLMSettings(model=str(gguf), window=256), tmp_path)
    yield replica
    replica.close()


async def test_a_replica_answers_measures_and_tells_what_it_is(replica: LlamaCpp):
    """All that the gateway asks of it."""
    items = [item async for item in replica.generate(ASKED)]
    assert isinstance(items[0], Delta)
    assert isinstance(items[-1], Done)
    assert (await replica.measure(ASKED, ["the"])).prompt_tokens == items[-1].usage.prompt_tokens
    assert (await replica.card()).window == 256
    stats = await replica.stats()
    assert (stats["slots"], stats["slots_in_use"], stats["finished"], stats["generated_tokens"]) == (8, 0, 1, 20)
    assert all(isinstance(value, int | float) for value in stats.values())
    await replica.check_health()


async def test_models_are_switched_without_dropping_what_runs(gguf: Path, tmp_path: Path):
    """Room for one: an answer in progress ends on its own model, and the other model's request waits for it."""
    other = random_model(tmp_path / "other.gguf", seed=1)
    models = {"other": FurtherModel(model=str(other), window=128)}
    replica = LlamaCpp(LLMSettings(model=str(gguf), window=256, models=models), tmp_path)
    loaded = [(card.name, card.window, card.loaded) for card in await replica.cards()]
    assert loaded == [("mindfu-demo", 256, True), ("other", 128, False)]

    async def text(model: str) -> str:
        request = ASKED.model_copy(update={"model": model})
        return "".join([item.text async for item in replica.generate(request) if isinstance(item, Delta)])

    texts = await asyncio.gather(text("mindfu-demo"), text("other"), text("mindfu-demo:base"), text("other:base"))
    assert texts[0] == texts[2] != texts[1] == texts[3]
    loaded = [(card.name, card.loaded) for card in await replica.cards()]
    assert loaded == [("mindfu-demo", False), ("other", True)]
    assert ((await replica.stats())["model_loads"], (await replica.stats())["model_evictions"]) == (2, 1)
    with pytest.raises(ModelNotFound):
        await text("third")
    replica.close()


async def test_further_models_are_kept_warm_from_the_first_health_check_on(gguf: Path, tmp_path: Path):
    """As many as may stay; and they can be put away and brought back by name."""
    models = {"other": FurtherModel(model=str(gguf)), "third": FurtherModel(model=str(gguf))}
    replica = LlamaCpp(LLMSettings(model=str(gguf), window=256, models=models, warm=2), tmp_path)
    await replica.check_health()
    await replica.load("other")
    assert [card.loaded for card in await replica.cards()] == [True, True, False]
    await replica.unload("mindfu-demo")
    assert [card.loaded for card in await replica.cards()] == [False, True, False]
    await replica.load("mindfu-demo")
    assert [card.loaded for card in await replica.cards()] == [True, True, False]
    assert (await replica.stats())["model_evictions"] == 0
    replica.close()


async def test_closing_the_stream_cancels_the_request(replica: LlamaCpp):
    """Through all layers, down to the slot."""
    async with aclosing(replica.generate(ASKED.model_copy(update={"max_tokens": None}))) as items:
        await anext(items)
    assert (await replica.stats())["cancelled"] == 1


async def test_a_closed_replica_is_unhealthy(replica: LlamaCpp):
    """Closing twice, as Serve and an owner may, is harmless."""
    replica.close()
    replica.close()
    with pytest.raises(EngineFailed):
        await replica.check_health()


def test_the_trial_passes_on_a_good_file(gguf: Path):
    """In a process of its own."""
    probe(gguf)


def test_the_trial_tells_why_it_failed(gguf: Path, tmp_path: Path):
    """A damaged file is no crash of ours."""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf.read_bytes()[:-5000])
    with pytest.raises(Misconfigured, match="does not load"):
        probe(damaged)


def test_a_crash_in_the_trial_is_an_error_and_not_a_crash(tmp_path: Path):
    """A norm that llama.cpp asserts against aborts the child, as a bad build does with a segmentation fault."""
    with pytest.raises(Misconfigured, match="dies of SIGABRT"):
        probe(random_model(tmp_path / "fatal.gguf", Shape(epsilon=-1.0)))


def test_the_demo_model_comes_with_the_package(tmp_path: Path):
    """A first start needs no download."""
    LlamaCpp(LLMSettings(), tmp_path).close()
