"""LoRA adapters on real llama.cpp, with a base that says the alphabet and adapters that say one letter."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from engines import alphabet_model, answer, asked, idle, running
from gguf_factory import constant_adapter, random_adapter

from app.errors import InvalidRequest, ModelNotFound
from app.llama.engine import Engine
from app.messages import Delta

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    alphabet_model(folder / "base.gguf")
    for letter in "xyz":
        constant_adapter(folder / f"{letter}.gguf", ord(letter))  # the vocabulary begins with the bytes
    return folder


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    """With the adapters x and y."""
    with running(folder / "base.gguf", speculation=0) as engine:
        for name in "xy":
            await engine.load_adapter(name, folder / f"{name}.gguf")
        yield engine


async def test_cells_are_not_shared_between_adapters(engine: Engine):
    """The same prompt was read with other weights."""
    await answer(engine, asked("the same " * 9, max_tokens=3))
    _, other = await answer(engine, asked("the same " * 9, max_tokens=3, adapter="x"))
    _, again = await answer(engine, asked("the same " * 9, max_tokens=3, adapter="x"))
    assert (other.usage.cached_tokens, again.usage.cached_tokens) == (0, again.usage.prompt_tokens - 1)


async def test_no_adapter_starves(engine: Engine):
    """Five long answers of one adapter: another's comes within a few rounds of stall_s, and so does the base's.

    stall_s is 0.5 s: three adapters take turns of 0.17 s each.
    """
    crowd = [engine.generate(asked(adapter="x", max_tokens=200)) for _ in range(5)]
    for items in crowd:
        await anext(items)
    began = time.perf_counter()
    for adapter in ("y", None):
        await answer(engine, asked(adapter=adapter, max_tokens=1))
    assert time.perf_counter() - began < 2.0
    for items in crowd:
        await items.aclose()


async def test_an_unknown_adapter_is_not_found_with_the_known_ones(engine: Engine):
    """As a model is not found: clients name adapters as models."""
    with pytest.raises(ModelNotFound) as caught:
        await answer(engine, asked(adapter="nope"))
    assert caught.value.known == ("mindfu-demo", "mindfu-demo:x", "mindfu-demo:y")


async def test_unloading_lets_answers_finish_and_refuses_new_ones(engine: Engine):
    """The answer that runs is complete, and of the adapter that it began with."""
    async with aclosing(engine.generate(asked(adapter="x", max_tokens=150))) as items:
        first = await anext(items)
        unloading = asyncio.create_task(engine.unload_adapter("x"))
        await asyncio.sleep(0)
        with pytest.raises(ModelNotFound):
            await answer(engine, asked(adapter="x"))
        rest = "".join([item.text async for item in items if isinstance(item, Delta)])
        assert isinstance(first, Delta)
        assert first.text + rest == "x" * 150
    await unloading
    assert engine.adapters() == ("y",)


async def test_a_swap_takes_under_a_second_and_drops_nothing(engine: Engine, folder: Path):
    """While two answers run, on the base and on another adapter."""
    others = [asyncio.create_task(answer(engine, asked(max_tokens=200, adapter=adapter))) for adapter in (None, "y")]
    began = time.perf_counter()
    await engine.unload_adapter("x")
    await engine.load_adapter("x", folder / "z.gguf")
    assert time.perf_counter() - began < 1.0
    assert (await answer(engine, asked(max_tokens=5, adapter="x")))[0] == "zzzzz"  # and no cell of the old one is used
    base, y = [text for text, _ in await asyncio.gather(*others)]
    assert (base[:26], y) == ("abcdefghijklmnopqrstuvwxyz", "y" * 200)


async def test_a_scale_weakens_an_adapter(engine: Engine, folder: Path):
    """The logit of z is twice the base's letter: at 0.4 of that the alphabet wins again."""
    await engine.load_adapter("weak", folder / "z.gguf", scale=0.4)
    assert (await answer(engine, asked(max_tokens=3, adapter="weak")))[0] == "abc"


async def test_a_taken_name_is_refused(engine: Engine, folder: Path):
    """A version is never replaced under the same name while it is loaded."""
    with pytest.raises(InvalidRequest, match="loaded already"):
        await engine.load_adapter("x", folder / "z.gguf")
    assert (await answer(engine, asked(max_tokens=2, adapter="x")))[0] == "xx"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other shape", "shape"),
        ("other architecture", "arch"),
        ("a model", "general.type"),
        ("cut off", "corrupted"),
        ("nowhere", "No such file"),
        ("empty", "no LoRA adapter"),
    ],
)
async def test_a_wrong_adapter_is_refused_with_the_reason(
    name: str, reason: str, engine: Engine, folder: Path, tmp_path: Path
):
    """The name stays free, and answers go on."""
    path = tmp_path / f"{name}.gguf"
    match name:
        case "other shape":
            random_adapter(path)
        case "other architecture":
            random_adapter(path, architecture="qwen2")
        case "a model":
            path = folder / "base.gguf"
        case "cut off":
            path.write_bytes((folder / "x.gguf").read_bytes()[:-500])
        case "empty":
            path.touch()
    with pytest.raises(InvalidRequest, match=reason):
        await engine.load_adapter("bad", path)
    assert engine.adapters() == ("x", "y")
    assert (await answer(engine, asked(max_tokens=3)))[0] == "abc"


FUZZ = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from engines import running
from app.errors import InvalidRequest

async def main(folder):
    with running(folder / "base.gguf") as engine:
        for path in sorted(folder.glob("bad-*.gguf")):
            try:
                await engine.load_adapter(path.stem, path)
            except InvalidRequest:
                pass

asyncio.run(main(Path(sys.argv[1])))
print("alive")
"""


def test_damaged_adapters_never_kill_the_process(folder: Path):
    """Sixty files with one byte or one stretch changed, in a child: each loads or is refused."""
    rng, good = np.random.default_rng(7), (folder / "x.gguf").read_bytes()
    for number in range(60):
        data = bytearray(good)
        at = int(rng.integers(0, 400 if number % 2 else len(data)))
        data[at : at + int(rng.integers(1, 9))] = rng.bytes(8)[: int(rng.integers(1, 9))]
        (folder / f"bad-{number:02}.gguf").write_bytes(data)
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", FUZZ, str(folder), str(tests.parent), str(tests)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (child.returncode, child.stdout.strip()[-5:]) == (0, "alive"), child.stderr[-2000:]


async def test_after_all_nothing_is_left(engine: Engine):
    """Adapters unloaded, their kept beginnings are gone."""
    for name in "xy":
        await answer(engine, asked(max_tokens=3, adapter=name))
        await engine.unload_adapter(name)
    await idle(engine)
    assert (engine.stats().kept_sequences, engine.stats().kept_tokens) == (0, 0)


@pytest.mark.parametrize(("style", "taught_by"), [("auto", "mistral_inst"), ("mistral_inst", "auto")])
async def test_what_another_chat_template_taught_is_refused(style: str, taught_by: str, folder: Path, tmp_path: Path):
    """Both are named; what the template that serves taught loads, and so does a file that says nothing of it."""
    files = {told: constant_adapter(tmp_path / f"{told}.gguf", ord("q"), taught_by=told) for told in (style, taught_by)}
    with running(folder / "base.gguf", chat_template=style) as engine:
        with pytest.raises(InvalidRequest, match=f"taught by the chat template '{taught_by}', and '{style}' serves"):
            await engine.load_adapter("other", files[taught_by])
        await engine.load_adapter("same", files[style])
        await engine.load_adapter("silent", folder / "x.gguf")
        assert engine.adapters() == ("same", "silent")
