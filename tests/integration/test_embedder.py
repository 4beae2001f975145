"""The embedder serves the real model: its vectors are sentence-transformers' own, whatever they are batched with."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app import embedding_source
from app.embedding import EmbeddingModel, mean
from app.embedding_openvino import OpenVINONetwork, converted, key
from app.embedding_source import BUNDLED, bundled
from app.embedding_torch import TorchNetwork, has_bf16
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
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps OpenVINO's form of the models."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def torch_network() -> TorchNetwork:
    return TorchNetwork(BUNDLED, bundled(), threads=1)


@pytest.fixture(scope="module", params=["openvino", "torch"])
def embedder(request: pytest.FixtureRequest, home: Path) -> Embedder:
    """Every guarantee holds for both backends."""
    embedder = Embedder(EmbeddingSettings(batch_size=4, threads=1, backend=request.param), home)
    assert request.param in embedder._model.backend.lower().replace("pytorch", "torch")
    return embedder


@pytest.fixture(scope="module")
def library(torch_network: TorchNetwork) -> Any:
    """sentence-transformers itself."""
    return torch_network._library


@pytest.fixture(scope="module")
def reference(library: Any) -> Floats:
    """What it makes of TEXTS."""
    return library.encode(list(TEXTS), normalize_embeddings=True)


async def test_vectors_are_those_of_sentence_transformers(embedder: Embedder, reference: Floats, library: Any):
    """Queries, passages and plain texts alike: cosine over 0.999; float32, of unit length, in the order asked."""
    vectors, tokens = await embedder.embed(TEXTS)
    passages = await embedder.embed_passages(TEXTS)
    queries = np.stack([await embedder.embed_query(text) for text in TEXTS])
    for found in (vectors, passages, queries):
        assert found.dtype == np.float32
        assert same(found, reference)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    library.tokenizer.backend_tokenizer.no_truncation()
    assert tokens == sum(len(library.tokenizer(text)["input_ids"]) for text in TEXTS)


async def test_company_in_a_batch_changes_nothing(embedder: Embedder, reference: Floats):
    """Many callers at once, each text padded by others: every one gets its own vector."""
    found = await asyncio.gather(*(embedder.embed_query(text) for text in TEXTS * 5), embedder.embed_passages(TEXTS))
    assert same(np.stack(found[:-1]), np.tile(reference, (5, 1)))
    assert same(found[-1], reference)


async def test_queries_share_a_pass(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """Eight queries that arrive together take two passes of four."""
    passes = Passes(embedder, monkeypatch)
    await asyncio.gather(*(embedder.embed_query(f"question {number}") for number in range(8)))
    assert [len(batch) for batch in passes.seen] == [4, 4]


async def test_a_query_does_not_wait_for_passages(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """A query that comes in the middle of a pass of passages is answered before that pass ends."""
    passes = Passes(embedder, monkeypatch, hold=lambda batch: len(batch[0]) > 3)
    bulk = asyncio.create_task(embedder.embed_passages(["some passage of a long document"] * 8))
    await passes.begun.wait()
    await embedder.embed_query("q")
    assert [len(batch[0]) for batch in passes.seen] == [8, 3]  # [CLS] q [SEP]
    passes.go_on.set()
    assert len(await bulk) == 8


async def test_a_caller_that_leaves_costs_no_pass(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """Cancelled work that waits is dropped."""
    passes = Passes(embedder, monkeypatch)
    bulk = asyncio.create_task(embedder.embed_passages(["some passage of a long document"] * 100))
    await passes.begun.wait()
    bulk.cancel()
    await embedder.embed_passages(["a passage of somebody else"])
    assert len(passes.seen) <= 3  # the one that ran, that of the other, and at most one between them


async def test_the_loop_turns_while_the_model_works(embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    """Health checks are answered during a forward pass."""
    passes = Passes(embedder, monkeypatch, hold=lambda _: True)
    bulk = asyncio.create_task(embedder.embed_passages(["some passage"]))
    await passes.begun.wait()
    await embedder.check_health()
    passes.go_on.set()
    await bulk


async def test_a_long_passage_is_the_mean_of_its_windows(embedder: Embedder):
    """Nothing is cut off: what stands behind the model's 256 tokens changes the vector."""
    head = "alpha " * 600
    with_tail, without = await embedder.embed_passages([head + "omega " * 600, head])
    assert np.linalg.norm(with_tail) == pytest.approx(1, abs=1e-5)
    assert float(with_tail @ without) < 0.99
    model = embedder._model
    windows = model.windows(model.tokens(head, "document"))
    assert [len(window) for window in windows] == [202, 202, 202]  # 600 = 3 × 200, each with [CLS] and [SEP]
    near = 1e-5 if "32" in model.backend else 1e-3  # of bfloat16, as some CPUs compute, batches of other sizes differ
    np.testing.assert_allclose(without, mean(model.forward(windows)), atol=near)
    np.testing.assert_allclose(model.embed_passages([head]), [without], atol=near)


async def test_an_api_text_beyond_the_model_is_refused_with_both_numbers(embedder: Embedder):
    """A caller of /v1/embeddings gets no vector that the model did not make."""
    with pytest.raises(InvalidRequest, match=r"Input 1 is 302 tokens, 'all-MiniLM-L6-v2' reads at most 256"):
        await embedder.embed(("fits", "word " * 300))
    vectors, tokens = await embedder.embed(("word " * 254,))
    assert (vectors.shape, tokens) == ((1, 384), 256)


async def test_bulk_work_in_one_thread_makes_the_same_vectors(embedder: Embedder):
    """In the order asked, whatever the lengths, and with texts that are empty."""
    texts = [*TEXTS, "", *reversed(TEXTS), "word " * 300]
    assert same(embedder._model.embed_passages(texts), await embedder.embed_passages(texts))
    assert same(embedder._model.embed_passages(TEXTS), (await embedder.embed(TEXTS))[0])


async def test_no_texts_make_no_vectors(embedder: Embedder):
    """The shape stays right."""
    assert (await embedder.embed_passages([])).shape == (0, 384)
    assert embedder._model.embed_passages([]).shape == (0, 384)
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
        EmbeddingModel.load(name, threads=1)


def test_without_a_folder_for_its_form_openvino_gives_way_and_the_log_says_why(caplog: pytest.LogCaptureFixture):
    """`auto` never fails for want of the faster backend. Here by path, as any sentence-transformers folder will do."""
    model = EmbeddingModel.load(str(bundled()), threads=1)
    kind = "bfloat16" if has_bf16() else "float32"
    assert (model.space.dimension, model.backend) == (384, f"PyTorch, cpu, {kind}")
    assert "not on OpenVINO: there is no folder to keep its form of the model in" in caplog.text


def test_a_model_that_openvino_cannot_compute_runs_on_pytorch(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Unless OpenVINO was asked for by name, which is then refused with the reason."""
    monkeypatch.setattr("app.embedding_openvino.converted", _fails)
    assert "PyTorch" in EmbeddingModel.load(BUNDLED, threads=1, cache=home / "embedding").backend
    assert "not on OpenVINO: it failed: RuntimeError: no such operator" in caplog.text
    with pytest.raises(Misconfigured, match=r"embedding\.backend: OpenVINO cannot compute .* no such operator"):
        EmbeddingModel.load(BUNDLED, threads=1, backend="openvino", cache=home / "embedding")


def _fails(*_: object) -> Path:
    raise RuntimeError("no such operator")


def test_a_backend_that_computes_something_else_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Every load holds the vectors against those of sentence-transformers."""
    forward = OpenVINONetwork.forward
    monkeypatch.setattr(OpenVINONetwork, "forward", lambda *given: np.roll(forward(*given), 1, axis=1))
    assert "PyTorch" in EmbeddingModel.load(BUNDLED, threads=1, cache=home / "embedding").backend
    assert re.search(
        r"OpenVINO, cpu, b?f\d\d does not compute all-MiniLM-L6-v2 as sentence-transformers does", caplog.text
    )


def test_bfloat16_keeps_the_vectors(monkeypatch: pytest.MonkeyPatch, reference: Floats):
    """Where a CPU computes with it, PyTorch does; here it is emulated, which shows the same rounding."""
    monkeypatch.setattr("app.embedding_torch.has_bf16", lambda: True)
    model = EmbeddingModel.load(BUNDLED, threads=1, backend="torch")
    assert model.backend == "PyTorch, cpu, bfloat16"
    assert same(model.embed_passages(TEXTS), reference)


def test_other_files_of_a_model_are_another_key(home: Path, tmp_path: Path):
    """The form of a model that was replaced in its folder is not served on, and half a form is never seen."""
    made = converted(BUNDLED, bundled(), home / "embedding")
    assert list((home / "embedding").iterdir()) == [made]
    changed = variant(tmp_path / "model", "config_sentence_transformers.json", prompts={"query": "ask: "})
    assert key(BUNDLED, bundled()) == made.name != key(BUNDLED, changed)


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
    folder = variant(tmp_path / "model", "config_sentence_transformers.json", prompts=prompts)
    model = EmbeddingModel.load(str(folder), threads=1)
    assert model.tokens("x", "query") == model.tokens("query: x", "plain")
    assert model.tokens("x", "document") == model.tokens("passage: x", "plain")


def test_a_model_that_needs_more_than_token_ids_is_refused(tmp_path: Path):
    """Rather than served wrong: here its pooling leaves the prompt out, which we do not do."""
    folder = variant(tmp_path / "model", "config_sentence_transformers.json", prompts={"query": "a long prompt: "})
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text()) | {"include_prompt": False}
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(Misconfigured, match="its vectors of a query need more than token ids"):
        EmbeddingModel.load(str(folder), threads=1)


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bundled model is the one that was published, bit for bit."""
    package = tmp_path / "forged_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"weights of somebody else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedding_source, "BUNDLED_PACKAGE", "forged_minilm")
    with pytest.raises(Misconfigured, match="published is 53aa5117"):
        bundled()


def test_serving_needs_none_of_the_large_libraries(home: Path):
    """A model is converted once; what starts then is light, and reports nothing to anybody. Nor does importing the
    deployment load anything: the process that builds the graph stays light.
    """
    converted(BUNDLED, bundled(), home / "embedding")
    code = (
        "import sys, deployments.embedder as e; from app.settings import EmbeddingSettings as S\n"
        "from pathlib import Path\n"
        "print(sorted({'openvino', 'torch', 'sentence_transformers'} & set(sys.modules)))\n"
        f"print(e.Embedder(S(), Path({str(home)!r}))._model.backend)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'mlflow', 'ray', 'pandas'} & set(sys.modules)))\n"
        "print(sys.modules['openvino_telemetry'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    empty, backend, loaded, telemetry = run.stdout.splitlines()
    assert (empty, loaded, telemetry) == ("[]", "[]", "None")
    assert backend.startswith("OpenVINO, cpu, ")


def same(found: Floats, expected: Floats) -> bool:
    """Whether they point the same way: cosines over 0.999."""
    assert found.shape == expected.shape
    return bool((found * expected).sum(axis=1).min() > 0.999)


class Passes:
    """The forward passes from now on. seen: their batches. begun: set with the first. Those that `hold` picks wait in
    their thread for `go_on`.
    """

    def __init__(
        self,
        embedder: Embedder,
        monkeypatch: pytest.MonkeyPatch,
        hold: Callable[[list[list[int]]], bool] = lambda _: False,
    ) -> None:
        self.seen: list[list[list[int]]] = []
        self.begun, self.go_on = asyncio.Event(), threading.Event()
        self._hold = hold
        self._loop, self._forward = asyncio.get_running_loop(), embedder._model.forward
        monkeypatch.setattr(embedder._model, "forward", self._note)

    def _note(self, windows: list[list[int]]) -> Floats:
        self.seen.append(windows)
        self._loop.call_soon_threadsafe(self.begun.set)
        if self._hold(windows):
            self.go_on.wait(20)
        return self._forward(windows)
