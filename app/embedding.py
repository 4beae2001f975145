"""The embedding model: text to unit vectors, as sentence-transformers makes them. Sync on purpose.

deployments/embedder.py gives it threads and batches. Two backends compute the same network: OpenVINO on CPUs
(app/embedding_openvino.py), PyTorch everywhere (app/embedding_torch.py).

A text longer than the model reads is cut into windows of equal length, and its vector is the mean of theirs, so nothing
is dropped without a word. We tokenise ourselves for that; at load our vectors are held against sentence-transformers'
own, so a model that needs more than token ids (another modality, a chat template) is refused instead of served wrong.
"""

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

import numpy as np

from app.embedding_card import PROBE_COSINE, PROBES, PURPOSES, Network, Purpose, unfit
from app.embedding_source import located
from app.errors import InvalidRequest, Misconfigured
from app.vectors import Floats, Space

Backend = Literal["auto", "torch", "openvino"]
Tokens = list[int]

WIDTH_STEP = 16  # a pass is padded to a multiple: oneDNN keeps 1.4 MB for every shape that it has met
PASS_TOKENS = 512  # 0.2 s on one core; larger passes are hardly faster there, and others wait for the one that runs

log = logging.getLogger(__name__)


class EmbeddingModel:
    """One loaded model. space: its name and dimension. max_tokens: what it reads of a text, special ones counted.
    backend: what computes it, for people.

    Its methods may be called from several threads at once.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._card, self._tokenizer = network.card, network.tokenizer
        self.space = Space(model=self._card.model, dimension=self._card.dimension)
        self.max_tokens = self._card.max_tokens
        self.backend = network.describes
        self._pass_tokens = network.pass_tokens or PASS_TOKENS

    @classmethod
    def load(cls, name: str, *, threads: int, backend: Backend = "auto", cache: Path | None = None) -> Self:
        """threads: of one pass. cache: where OpenVINO's form of models is kept; without one, `auto` is PyTorch.

        Raises Misconfigured: not to be found, not what was published, or not a model of plain text.
        """
        folder = located(name)
        for network in _candidates(name, folder, threads, backend, cache):
            model = cls(network)
            fault = model.differs()
            if fault is None:
                log.info("%s is computed by %s.", name, model.backend)
                return model
            log.warning("%s does not compute %s as sentence-transformers does: %s.", network.describes, name, fault)
        raise unfit(name, fault or "")

    def differs(self) -> str | None:
        """How its vectors of the probes differ from sentence-transformers' own; None: they do not."""
        for purpose, theirs in zip(PURPOSES, self._network.reference, strict=True):
            ours = self.forward([self.windows(self.tokens(text, purpose))[0] for text in PROBES])
            if (ours * theirs).sum(axis=1).min() < PROBE_COSINE:
                return f"its vectors of a {purpose} need more than token ids"
        return None

    def tokens(self, text: str, purpose: Purpose) -> Tokens:
        """The text's token ids, without special ones. Raises InvalidRequest for text that is no Unicode."""
        try:
            ids: Tokens = self._tokenizer.encode(getattr(self._card, purpose) + text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as exc:
            raise InvalidRequest("The text holds half of a surrogate pair, which is no character.", "input") from exc
        return ids

    def size(self, tokens: Tokens) -> int:
        """How many tokens the model would read: special ones counted."""
        return len(self._card.before) + len(tokens) + len(self._card.after)

    def windows(self, tokens: Tokens) -> list[Tokens]:
        """Model-ready inputs of near equal length, each within max_tokens; one where the text fits."""
        room = self.max_tokens - self.size([])
        parts = max(1, math.ceil(len(tokens) / room))
        width = math.ceil(len(tokens) / parts)
        return [
            [*self._card.before, *tokens[part * width : (part + 1) * width], *self._card.after] for part in range(parts)
        ]

    def batch(self, windows: Iterable[Tokens], *, most: int) -> int:
        """How many of the first windows make a good pass: at least one, at most `most`, not too much work at once."""
        count = width = 0
        for window in windows:
            width = max(width, self._width(window))
            if count == most or (count and width * (count + 1) > self._pass_tokens):
                break
            count += 1
        return count

    def forward(self, windows: Sequence[Tokens]) -> Floats:
        """One pass. Returns unit vectors, float32 (windows, dimension)."""
        width = max(map(self._width, windows))
        ids = np.full((len(windows), width), self._card.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, window in enumerate(windows):
            start = width - len(window) if self._card.pads_left else 0
            ids[row, start : start + len(window)] = window
            mask[row, start : start + len(window)] = 1
        return self._network.forward(ids, mask)

    def embed_passages(self, texts: Sequence[str], *, most: int = 64) -> Floats:
        """All texts in this thread, in passes of equally long ones: vectors (texts, dimension). See `mean`."""
        split = [self.windows(self.tokens(text, "document")) for text in texts]
        owners = [number for number, windows in enumerate(split) for _ in windows]
        flat = [window for windows in split for window in windows]
        order = sorted(range(len(flat)), key=lambda at: len(flat[at]))
        vectors = np.zeros((len(texts), self.space.dimension), np.float32)
        while order:
            now = order[: self.batch((flat[at] for at in order), most=most)]
            order = order[len(now) :]
            np.add.at(vectors, [owners[at] for at in now], self.forward([flat[at] for at in now]))
        unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def _width(self, window: Tokens) -> int:
        return min(self.max_tokens, math.ceil(len(window) / WIDTH_STEP) * WIDTH_STEP)


def mean(vectors: Floats) -> Floats:
    """One unit vector for the windows of one text. vectors: (windows, dimension)."""
    total = vectors.sum(axis=0)
    unit: Floats = total if len(vectors) == 1 else total / max(float(np.linalg.norm(total)), 1e-12)
    return unit


def _candidates(
    name: str, folder: Path | None, threads: int, backend: Backend, cache: Path | None
) -> Iterator[Network]:
    """Ways to compute the model, the fastest first."""
    if backend != "torch":
        why = "" if backend == "openvino" else _against_openvino(cache)
        if not why:
            try:
                yield _by_openvino(name, folder, threads, cache)
            except Misconfigured:
                raise
            except Exception as exc:
                if backend == "openvino":
                    problem = f"OpenVINO cannot compute '{name}': {exc}"
                    raise Misconfigured("embedding.backend", problem, "Set it to auto or torch.") from exc
                why = f"it failed: {type(exc).__name__}: {exc}"
            if backend == "openvino":
                return
        if why:
            log.warning("The embedding model runs on PyTorch, not on OpenVINO: %s.", why)
    from app.embedding_torch import TorchNetwork

    network = TorchNetwork(name, folder or name, threads=threads)
    if network.halve():
        yield network
        network = TorchNetwork(name, folder or name, threads=threads)
    yield network


def _by_openvino(name: str, folder: Path | None, threads: int, cache: Path | None) -> Network:
    from app.embedding_openvino import OpenVINONetwork, converted

    assert cache is not None, "OpenVINO's form of the model has to be kept somewhere"
    return OpenVINONetwork(converted(name, folder, cache), threads=threads)


def _against_openvino(cache: Path | None) -> str:
    """Why it is not the first choice here; nothing where it is."""
    if cache is None:
        return "there is no folder to keep its form of the model in"
    if find_spec("openvino") is None:
        return "the package openvino is not installed"
    if sys.platform == "darwin":
        return "a Mac has a GPU, which PyTorch computes with"
    if Path("/dev/nvidiactl").exists():
        import torch

        if torch.cuda.is_available():
            return "there is a GPU"
    return ""
