"""The embedding model through OpenVINO, the fastest on CPUs: converted once, then started in a second, without PyTorch.

    <cache>/<key>/model.xml, model.bin    the network, float32
                  tokenizer.json          as sentence-transformers uses it
                  card.json               what else there is to know, see app/embedding_card.py
                  reference.npy           sentence-transformers' own vectors of the probes

The key covers the model's files and the version of OpenVINO. OpenVINO computes in bfloat16 where the CPU does.
"""

import contextlib
import hashlib
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from app.embedding_card import Card, Ints
from app.embedding_source import located
from app.vectors import Floats

if TYPE_CHECKING:
    pass

FORMAT = "1"  # of what lies in the cache
CONCURRENT = 2  # passes at the same time: a query need not wait for passages


class OpenVINONetwork:
    """A converted model, compiled for this CPU. folder: from `converted`. threads: of one pass."""

    pass_tokens: int | None = None

    def __init__(self, folder: Path, *, threads: int) -> None:
        from tokenizers import Tokenizer

        core = _openvino().Core()
        self._compiled = core.compile_model(
            str(folder / "model.xml"),
            "CPU",
            {
                "NUM_STREAMS": CONCURRENT,
                "INFERENCE_NUM_THREADS": CONCURRENT * threads,
                "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same core
            },
        )
        self._mine = threading.local()  # a request holds its tensors: one for each thread
        precision = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.describes = f"OpenVINO, cpu, {precision}"
        self.card = Card.model_validate_json((folder / "card.json").read_bytes())
        self.reference: Floats = np.load(folder / "reference.npy")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def forward(self, ids: Ints, mask: Ints) -> Floats:
        """Unit vectors, float32 (texts, dimension). ids, mask: int64 (texts, tokens)."""
        if not hasattr(self._mine, "request"):
            self._mine.request = self._compiled.create_infer_request()
        self._mine.request.infer([ids, mask], share_inputs=True)
        found: Floats = self._mine.request.get_output_tensor(0).data.copy()
        return found


def converted(name: str, folder: Path | None, cache: Path) -> Path:
    """The folder of the converted model, which is made at the first call: in a child, so that PyTorch's memory goes.

    name: what people call the model. folder: where it lies; None: to be downloaded, which a child does as well. Raises
    Misconfigured as TorchNetwork does, and whatever the conversion raises.
    """
    if folder is not None and (known := cache / key(name, folder)).exists():
        return known
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_convert, name, folder, cache).result()


def _convert(name: str, folder: Path | None, cache: Path) -> Path:
    import torch

    from app.embedding_torch import TorchNetwork

    openvino = _openvino()
    network = TorchNetwork(name, folder or name, threads=1)
    folder = folder or located(name)
    assert folder is not None, "it was loaded just now"
    made = cache / key(name, folder)
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="making-", dir=cache, ignore_cleanup_errors=True) as partial:
        example = torch.ones((2, 16), dtype=torch.long)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of branches that no text takes otherwise
            model = openvino.convert_model(network.module.cpu(), example_input=(example, example))
        openvino.save_model(model, f"{partial}/model.xml", compress_to_fp16=False)
        network.tokenizer.save(f"{partial}/tokenizer.json")
        np.save(f"{partial}/reference.npy", network.reference)
        Path(partial, "card.json").write_text(network.card.model_dump_json())
        with contextlib.suppress(OSError):  # somebody else was faster
            Path(partial).rename(made)
    return made


def key(name: str, folder: Path) -> str:
    """Of the cache. Other files have another: told by name, size and time of change, as `make` does."""
    digest = hashlib.sha256(f"{FORMAT} {version('openvino')} {name}".encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _openvino() -> Any:
    """The package, with its telemetry left out: importing it would report to Google Analytics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # the import fails, and it does without
    import openvino

    return openvino
