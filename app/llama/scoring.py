"""How likely a served model finds given tokens: log-probabilities by the same weights, adapters and cache that answer.

What evaluation and parity (train/evaluate.py) hold against PyTorch. One sequence at a time, in a context of its own.
"""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.errors import ContextTooLong, EngineFailed
from app.llama.adapters import Adapter
from app.llama.context import Context, Storage
from app.llama.model import Model
from app.llama.vocabulary import Tokens
from app.settings import LLMSettings

ROWS = 64  # tokens of one pass; each takes vocabulary × 4 bytes of logits


class Scorer:
    """Scores tokens with one GGUF, with or without adapters. Close it, or use it in a `with` block."""

    def __init__(self, path: Path, settings: LLMSettings, *, threads: int) -> None:
        self.model = Model(path, settings)
        storage = Storage(settings.cache_type_k, settings.cache_type_v, settings.flash_attention)
        self._window = settings.window
        self._context = Context(
            self.model, cells=settings.window, sequences=ROWS, batch_tokens=ROWS, threads=threads, storage=storage
        )
        self._adapters: dict[Path, Adapter] = {}

    def score(self, tokens: Tokens | list[int], adapter: Path | None = None) -> NDArray[np.float32]:
        """The natural log-probability of each token but the first, after those before it. [tokens - 1]

        adapter: a GGUF LoRA to score with; None: the bare model. Raises ContextTooLong, EngineFailed, and
        InvalidRequest for what is no adapter of this model.
        """
        if len(tokens) > self._window:
            raise ContextTooLong(len(tokens), 0, self._window)
        context = self._context
        context.use(self._loaded(adapter))
        context.forget(0)
        found = np.empty(max(0, len(tokens) - 1), np.float32)
        for start in range(0, len(found), ROWS):
            piece = tokens[start : min(start + ROWS, len(found))]
            context.clear()
            context.add(0, piece, start)
            if code := context.decode():
                raise EngineFailed(f"llama_decode returned {code}")
            for row in range(len(piece)):
                found[start + row] = _log_probability(context.logits(row), int(tokens[start + row + 1]))
        return found

    def close(self) -> None:
        """Free everything."""
        self._context.use(None)
        for adapter in self._adapters.values():
            adapter.free()
        self._adapters.clear()
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loaded(self, path: Path | None) -> Adapter | None:
        if path is None:
            return None
        if path not in self._adapters:
            self._adapters[path] = Adapter(self.model, path.stem, path, 1.0)
        return self._adapters[path]


def _log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Of one token, by the softmax over all."""
    highest = float(logits.max())
    return float(logits[token]) - highest - float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
