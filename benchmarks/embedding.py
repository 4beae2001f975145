"""How fast the embedding model is by each way to compute it here, and how near its vectors are to the reference.

    python -m benchmarks.embedding [--documents 6]

The texts are chunks of Python's standard library, as ingestion embeds them (benchmarks/ingest.py). Each way has one
thread and takes its turn with every part of them; the reference is sentence-transformers' `encode` with its defaults.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.embedding import EmbeddingModel
from app.embedding_source import bundled
from app.settings import EmbeddingSettings
from app.vectors import Floats
from benchmarks.ingest import corpus, texts_of

PART = 64  # texts that each way is given at once

Way = Callable[[list[str]], Floats]


def reference(name: str) -> Way:
    """sentence-transformers as its documentation shows it, on one thread."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    model = SentenceTransformer(name)
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=6)
    options = parser.parse_args()
    name = EmbeddingSettings().model
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "all").mkdir()
        corpus(scratch / "all", options.documents)
        texts = texts_of(scratch / "all")
        models = [
            EmbeddingModel.load(name, threads=1, backend=backend, cache=scratch / "cache")
            for backend in ("openvino", "torch")
        ]
        ways: dict[str, Way] = {"sentence-transformers, encode": reference(str(bundled()))}
        ways |= {f"ours, {model.backend}": model.embed_passages for model in models}
        print(f"{len(texts)} texts of {statistics.mean(map(len, texts)):.0f} characters, one thread", flush=True)
        seconds, nearest = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 1.0)
        for embed in ways.values():
            embed(texts[:PART])  # each shape of a pass is compiled when it is first met
        for start in range(0, len(texts), PART):
            found: dict[str, Floats] = {}
            for way, embed in ways.items():
                began = time.perf_counter()
                found[way] = embed(texts[start : start + PART])
                seconds[way] += time.perf_counter() - began
            theirs = found["sentence-transformers, encode"]
            for way, vectors in found.items():
                nearest[way] = min(nearest[way], float(np.min((vectors * theirs).sum(axis=1))))
        for way, took in seconds.items():
            print(f"{way:<32} {len(texts) / took:6.1f} texts/s   cosine at least {nearest[way]:.6f}")


if __name__ == "__main__":
    main()
