"""What a model takes, before it is loaded; what is refused; and caches of other types."""

import logging
import re
from pathlib import Path

import pytest
from engines import answer, asked, running
from gguf_factory import Shape, random_model, sentencepiece_model

from app.errors import Misconfigured
from app.llama import memory
from app.llama.memory import Room
from app.settings import LLMSettings

pytestmark = pytest.mark.integration

SHAPE = Shape(embedding=128, layers=3, heads=4, kv_heads=2, feed_forward=256)  # heads of 32, which q8_0 can store


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "model.gguf", SHAPE)


def test_the_head_of_a_gguf_is_read_without_loading_it(gguf: Path):
    """Numbers, texts and the length of the vocabulary."""
    head = memory.head(gguf)
    assert (head["general.architecture"], head["llama.block_count"]) == ("llama", 3)
    assert memory.Sizes(head).vocabulary == 270


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
async def test_the_cache_is_as_large_as_was_told_before(gguf: Path, kind: str, caplog: pytest.LogCaptureFixture):
    """llama.cpp says itself how large its buffer is; and it answers with every type."""
    settings = LLMSettings(window=512, slots=4, cache_type_k=kind, cache_type_v=kind)
    with caplog.at_level(logging.DEBUG, "app.llama.model"), running(gguf, **settings.model_dump()) as engine:
        _, done = await answer(engine, asked(max_tokens=8))
    told = re.search(r"KV buffer size = +([\d.]+) MiB", caplog.text)
    assert told
    assert memory.need(gguf, settings).cache / 2**20 == pytest.approx(float(told[1]), abs=0.01)
    assert done.usage.completion_tokens


async def test_greedy_text_is_the_same_without_flash_attention(gguf: Path):
    """On and off compute the same, but for rounding; this answer is too short for that to show."""
    texts = []
    for flash in ("on", "off"):
        with running(gguf, flash_attention=flash) as engine:
            texts.append((await answer(engine, asked(max_tokens=4)))[0])
    assert texts[0] == texts[1]


def test_a_model_that_does_not_fit_is_refused_with_both_numbers_and_the_remedy(gguf: Path):
    """Before it takes the memory of everybody else on the machine."""
    settings = LLMSettings(window=2048, slots=8)  # 16,384 tokens × 3 layers × 2 heads × 32 × 2 bytes × 2 = 12.6 MB
    with pytest.raises(Misconfigured) as refusal:
        memory.check(gguf, settings, Room(ram=10_000_000, vram=None))
    assert "0.01 GB cache" in str(refusal.value)
    assert "0.01 GB are free" in str(refusal.value)
    assert "llm.cache_type_k" in str(refusal.value)
    memory.check(gguf, settings, Room(ram=10**9, vram=None))
    memory.check(gguf, settings, Room(ram=None, vram=None))


def test_the_share_of_a_gpu_is_checked_against_what_the_gpu_has(gguf: Path):
    """All layers on it: main memory does not matter; two of four: half of it is enough."""
    total = memory.need(gguf, LLMSettings()).total
    with pytest.raises(Misconfigured, match="on the GPU, which has"):
        memory.check(gguf, LLMSettings(gpu_layers=-1), Room(ram=10**9, vram=total - 1))
    memory.check(gguf, LLMSettings(gpu_layers=-1), Room(ram=0, vram=total))
    memory.check(gguf, LLMSettings(gpu_layers=2), Room(ram=total // 2 + 1, vram=total // 2 + 1))


def test_a_cache_type_that_does_not_fit_the_heads_is_refused_by_name(tmp_path: Path):
    """Heads of 16 numbers; q8_0 stores 32 together."""
    tiny = random_model(tmp_path / "tiny.gguf")
    with pytest.raises(Misconfigured, match="heads of this model have 16"):
        memory.check(tiny, LLMSettings(cache_type_k="q8_0"))


def test_quantised_values_without_flash_attention_are_refused():
    """llama.cpp cannot read them then."""
    with pytest.raises(ValueError, match="needs flash_attention"):
        LLMSettings(cache_type_v="q8_0", flash_attention="off")


@pytest.mark.parametrize("cut", [2, 10, 40, 300])
def test_a_broken_file_is_told_from_a_whole_one(gguf: Path, tmp_path: Path, cut: int):
    """Wherever the download ended."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:cut])
    with pytest.raises(Misconfigured, match="GGUF"):
        memory.check(broken, LLMSettings())


def test_other_vocabularies_are_read_too(tmp_path: Path):
    """Scores and types are lists of numbers, which are skipped."""
    assert memory.Sizes(memory.head(sentencepiece_model(tmp_path / "m.gguf"))).vocabulary == 5 + 256 + 6


def test_what_is_free_is_told():
    """The machine has some memory; GPUs count where a model goes to some."""
    room = memory.free(LLMSettings())
    assert room.ram is None or room.ram > 0
    assert room.vram is None
