"""The embedder serves the real model: its vectors are sentence-transformers' own, whatever they are batched with."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from app import embedding
from app.embedding import BUNDLED, EmbeddingModel, bundled
from app.errors import InvalidRequest, Misconfigured
from app.settings import EmbeddingSettings
from app.vectors import Floats, Space
from deployments.embedder import Embedder

pytestmark = pytest.mark.integration

TEXTS = (
    "What similarity laws must be obeyed when constructing aeroelastic models?",
    "x",
    "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
    "Die Katze sitzt auf der Matte. 猫はマットの上に座っている。",
    "   spaces,\ttabs\nand lines   ",
    "A sentence about nothing in particular. " * 5,
)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(EmbeddingSettings(batch_size=4, threads=1))


@pytest.fixture(scope="module")
def reference(embedder: Embedder) -> Floats:
    """What sentence-transformers itself makes of TEXTS."""
    return embedder._model._model.encode(list(TEXTS), normalize_embeddings=True)


async def test_vectors_are_those_of_sentence_transformers(embedder: Embedder, reference: Floats):
    """Queries, passages and plain texts alike, within 1e-5; float32, of unit length, in the order asked."""
    vectors, tokens = await embedder.embed(TEXTS)
    passages = await embedder.embed_passages(TEXTS)
    queries = np.stack([await embedder.embed_query(text) for text in TEXTS])
    for found in (vectors, passages, queries):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert tokens == sum(len(embedder._model._model.tokenizer(text)["input_ids"]) for text in TEXTS)


async def test_company_in_a_batch_changes_nothing(embedder: Embedder, reference: Floats):
    """Many callers at once, each text padded by others: every one gets its own vector."""
    found = await asyncio.gather(*(embedder.embed_query(text) for text in TEXTS * 5), embedder.embed_passages(TEXTS))
    np.testing.assert_allclose(np.stack(found[:-1]), np.tile(reference, (5, 1)), atol=1e-5)
    np.testing.assert_allclose(found[-1], reference, atol=1e-5)


async def test_queries_share_a_pass(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """Eight queries that arrive together take two passes of four."""
    passes = Passes(embedder, monkeypatch)
    await asyncio.gather(*(embedder.embed_query(f"question {number}") for number in range(8)))
    assert [len(batch) for batch in passes.seen] == [4, 4]


async def test_a_query_overtakes_waiting_passages(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """A query that comes during bulk work is in the next pass, alone."""
    passes = Passes(embedder, monkeypatch)
    bulk = asyncio.create_task(embedder.embed_passages(["some passage of a long document"] * 40))
    await passes.begun.wait()
    await embedder.embed_query("q")
    assert not bulk.done()
    assert [len(batch[0]) for batch in passes.seen[:3]].index(3) >= 1  # [CLS] q [SEP], behind the one that ran
    await bulk


async def test_passages_are_not_starved_by_queries(embedder: Embedder):
    """While queries never stop coming, bulk work still ends."""
    bulk = asyncio.create_task(embedder.embed_passages(["some passage"] * 8))

    async def ask() -> None:
        while not bulk.done():
            await embedder.embed_query("q")

    async with asyncio.timeout(30):
        await asyncio.gather(*(ask() for _ in range(4)), bulk)


async def test_a_caller_that_leaves_costs_no_pass(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """Cancelled work that waits is dropped."""
    passes = Passes(embedder, monkeypatch)
    bulk = asyncio.create_task(embedder.embed_passages(["some passage of a long document"] * 100))
    await passes.begun.wait()
    bulk.cancel()
    await embedder.embed_query("q")
    assert len(passes.seen) <= 3  # the one that ran, the query's, and at most one between them


async def test_the_loop_turns_while_the_model_works(embedder: Embedder):
    """Health checks are answered during a forward pass."""
    bulk = asyncio.create_task(embedder.embed_passages(["word " * 200] * 8))
    longest, last = 0.0, time.perf_counter()
    while not bulk.done():
        await asyncio.sleep(0.005)
        await embedder.check_health()
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < 0.25  # one pass of these takes longer than that


async def test_a_long_passage_is_the_mean_of_its_windows(embedder: Embedder):
    """Nothing is cut off: what stands behind the model's 256 tokens changes the vector."""
    head = "alpha " * 600
    with_tail, without = await embedder.embed_passages([head + "omega " * 600, head])
    assert np.linalg.norm(with_tail) == pytest.approx(1, abs=1e-5)
    assert float(with_tail @ without) < 0.99
    model = embedder._model
    windows = model.windows(model.tokens(head, "document"))
    assert [len(window) for window in windows] == [202, 202, 202]  # 600 = 3 × 200, each with [CLS] and [SEP]
    np.testing.assert_allclose(without, embedding.mean(model.forward(windows)), atol=1e-5)


async def test_an_api_text_beyond_the_model_is_refused_with_both_numbers(embedder: Embedder):
    """A caller of /v1/embeddings gets no vector that the model did not make."""
    with pytest.raises(InvalidRequest, match=r"Input 1 is 302 tokens, 'all-MiniLM-L6-v2' reads at most 256"):
        await embedder.embed(("fits", "word " * 300))
    vectors, tokens = await embedder.embed(("word " * 254,))
    assert (vectors.shape, tokens) == ((1, 384), 256)


async def test_no_texts_make_no_vectors(embedder: Embedder):
    """The shape stays right."""
    assert (await embedder.embed_passages([])).shape == (0, 384)
    assert (await embedder.embed(()))[1] == 0


async def test_text_that_is_no_unicode_is_refused(embedder: Embedder):
    """Half a surrogate pair, as JSON can smuggle in."""
    with pytest.raises(InvalidRequest, match="surrogate"):
        await embedder.embed(("\ud800",))


async def test_a_failing_pass_fails_those_who_wait_and_nobody_else(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """The next request finds a working embedder."""
    forward, broken = embedder._model.forward, threading.Event()

    def fail_once(windows: list[list[int]]) -> Floats:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("out of memory")
        return forward(windows)

    monkeypatch.setattr(embedder._model, "forward", fail_once)
    with pytest.raises(RuntimeError, match="out of memory"):
        await embedder.embed_query("q")
    assert (await embedder.embed_query("q")).shape == (384,)


async def test_it_says_what_it_is(embedder: Embedder):
    """Name and dimension, for /v1/models and for the vector store."""
    assert await embedder.card() == (BUNDLED, 384)
    assert await embedder.space() == Space(model=BUNDLED, dimension=384)


@pytest.mark.parametrize("name", ["no-such-org/no-such-model", "/no/such/folder"])
def test_a_model_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch):
    """Start-up says which setting is wrong. Offline, so that nobody is asked for the name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Misconfigured, match=rf"embedding\.model: '{name}' could not be loaded"):
        EmbeddingModel(name, threads=1)


def test_a_model_by_path_is_loaded(embedder: Embedder):
    """Any sentence-transformers folder will do; its vectors are held against the library's at load."""
    model = EmbeddingModel(str(bundled()), threads=1)
    assert model.space.dimension == 384


def variant(folder: Path, file: str, **changes: object) -> Path:
    """The bundled model with a changed configuration file."""
    shutil.copytree(bundled(), folder, copy_function=os.symlink)
    config = json.loads((folder / file).read_text()) | changes
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(config))
    return folder


def test_the_prompts_of_a_model_stand_before_its_texts(tmp_path: Path):
    """A model that was trained with "query: " and "passage: " gets them, and plain texts get none."""
    prompts = {"query": "query: ", "document": "passage: "}
    model = EmbeddingModel(
        str(variant(tmp_path / "model", "config_sentence_transformers.json", prompts=prompts)), threads=1
    )
    assert model.tokens("x", "query") == model.tokens("query: x", "plain")
    assert model.tokens("x", "document") == model.tokens("passage: x", "plain")


def test_a_model_that_needs_more_than_token_ids_is_refused(tmp_path: Path):
    """Rather than served wrong: here its pooling leaves the prompt out, which we do not do."""
    folder = variant(tmp_path / "model", "config_sentence_transformers.json", prompts={"query": "a long prompt: "})
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text()) | {"include_prompt": False}
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(Misconfigured, match="its vectors of a query need more than token ids"):
        EmbeddingModel(str(folder), threads=1)


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bundled model is the one that was published, bit for bit."""
    package = tmp_path / "forged_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"weights of somebody else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedding, "BUNDLED_PACKAGE", "forged_minilm")
    with pytest.raises(Misconfigured, match="published is 53aa5117"):
        bundled()


def test_serving_imports_no_training_stack():
    """Nor does importing the deployment load the model's libraries: the process that builds the graph stays light."""
    code = (
        "import sys, deployments.embedder as e; from app.settings import EmbeddingSettings as S\n"
        "print(sorted({'torch', 'sentence_transformers'} & set(sys.modules)))\n"
        "e.Embedder(S())\n"
        "print(sorted({'trl', 'peft', 'datasets', 'accelerate', 'mlflow', 'ray', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "[]"]


class Passes:
    """The forward passes from now on. seen: their batches. begun: set with the first."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[list[int]]] = []
        self.begun = asyncio.Event()
        self._loop, self._forward = asyncio.get_running_loop(), embedder._model.forward
        monkeypatch.setattr(embedder._model, "forward", self._note)

    def _note(self, windows: list[list[int]]) -> Floats:
        self.seen.append(windows)
        self._loop.call_soon_threadsafe(self.begun.set)
        return self._forward(windows)
