"""The embedded vector store at size: how fast it takes chunks in and answers meanwhile and after, and what it holds.

    python -m benchmarks.store [--chunks 100000] [--dimension 384]

Chunks are windows of 75 words of Python's own language reference (the standard library's pydoc_data), so that words are
as frequent as in real text; vectors are made up, in clusters, because embedding that many would take an hour. One
process holds the store as the VectorStore deployment does, with its upkeep: from 50,000 chunks on it builds an index in
a child process while it goes on. One client asks for five passages again and again, resting 20 ms between questions.

Not measured: a Qdrant server, and the way between processes, which benchmarks/serving.py has.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import psutil
from numpy.typing import NDArray

from app.messages import Chunk, Index
from app.vectors import Floats, Query, Space
from deployments.vector_store import VectorStore

COLLECTION = "benchmark"
CHUNK_WORDS = 75  # some 500 characters
DOCUMENT_CHUNKS = 250
CLUSTERS = 2000
REST_S = 0.02


class Supply:
    """Chunks, vectors and questions without end, the same in every run."""

    def __init__(self, dimension: int) -> None:
        self.words = " ".join(topics.values()).split()
        self.rng = np.random.default_rng(0)
        self.centres = self._unit(self.rng.normal(size=(CLUSTERS, dimension)))

    def documents(self, first: int, end: int) -> Iterator[tuple[Index, Floats]]:
        for number in range(first // DOCUMENT_CHUNKS, end // DOCUMENT_CHUNKS):
            texts = (self.text(CHUNK_WORDS) for _ in range(DOCUMENT_CHUNKS))
            cut = tuple(Chunk(number=n, text=text, start=0, end=len(text)) for n, text in enumerate(texts))
            yield (
                Index(collection=COLLECTION, document_id=f"doc_{number}", title="", chunks=cut),
                self.vectors(len(cut)),
            )

    def text(self, words: int) -> str:
        start = int(self.rng.integers(len(self.words) - words))
        return " ".join(self.words[start : start + words])

    def vectors(self, count: int) -> Floats:
        centres = self.centres[self.rng.integers(CLUSTERS, size=count)]
        return self._unit(centres + self.rng.normal(scale=0.03, size=centres.shape))

    def _unit(self, vectors: NDArray[np.float64]) -> Floats:
        unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit


def disk_bytes(folder: Path) -> int:
    """What a folder's files occupy; sparse ones by what is written of them."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


async def ask(
    store: VectorStore, supply: Supply, space: Space, times: list[float], *, questions: int | None = None
) -> None:
    """Ask until cancelled, or so often. times: seconds of each answer, added."""
    while questions is None or questions > 0:
        query = Query(supply.text(8), supply.vectors(1)[0], space, "default", (COLLECTION,), top_k=5, min_score=-1.0)
        began = time.perf_counter()
        await store.search(query)
        times.append(time.perf_counter() - began)
        questions = None if questions is None else questions - 1
        await asyncio.sleep(REST_S)


async def fill(store: VectorStore, documents: Sequence[tuple[Index, Floats]]) -> float:
    """Chunks/s."""
    began = time.perf_counter()
    for index, vectors in documents:
        await store.upsert(index, vectors)
    return sum(len(index.chunks) for index, _ in documents) / (time.perf_counter() - began)


def row(what: str, rate: float | None, times: Sequence[float]) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3
    taken_in = f"{rate:8.0f} chunks/s" if rate else " " * 17
    rss = psutil.Process().memory_info().rss / 2**20
    print(
        f"{what:<44}{taken_in}   p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   {len(times):5} questions   {rss:5.0f} MB",
        flush=True,
    )


async def main(chunks: int, dimension: int) -> None:
    """Fill it in four parts, the first with nobody asking; then wait for the index."""
    supply, space = Supply(dimension), Space(model="made up", dimension=dimension)
    part = chunks // 4
    assert part % DOCUMENT_CHUNKS == 0, f"--chunks must be a multiple of {4 * DOCUMENT_CHUNKS}"
    with tempfile.TemporaryDirectory() as home:
        store = VectorStore(Path(home), optimize_from=chunks // 2)
        await store.create(COLLECTION, space)
        print(f"at the start, words and clusters loaded: {psutil.Process().memory_info().rss / 2**20:.0f} MB")
        for number in range(4):
            documents = list(supply.documents(number * part, (number + 1) * part))
            times: list[float] = []
            asking = asyncio.create_task(ask(store, supply, space, times)) if number else None
            rate = await fill(store, documents)
            if asking:
                asking.cancel()
                row(f"{number * part} to {(number + 1) * part} chunks, meanwhile", rate, times)
            else:
                print(f"{f'0 to {part} chunks, nobody asks':<44}{rate:8.0f} chunks/s")
        times = []
        await ask(store, supply, space, times, questions=200)
        row("all there, the index is being built", None, times)
        began = time.perf_counter()
        assert store._upkeep is not None  # noqa: SLF001 - nobody else waits for it
        await store._upkeep  # noqa: SLF001
        waited, times = time.perf_counter() - began, []
        await ask(store, supply, space, times, questions=200)
        row(f"indexed, {waited:.0f} s later", None, times)
        held = disk_bytes(Path(home)) / 2**20
        await store.close()
        began = time.perf_counter()
        store = VectorStore(Path(home))
        assert await store.count(COLLECTION, "default") == chunks
        print(f"on the disk {held:.0f} MB; opened and counted in {time.perf_counter() - began:.2f} s")
        await store.close()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--chunks", type=int, default=100_000)
    options.add_argument("--dimension", type=int, default=384)
    chosen = options.parse_args()
    asyncio.run(main(chosen.chunks, chosen.dimension))
