"""How well and how fast documents are found, against an exact search and sentence-transformers' own loop.

    python -m benchmarks.retrieval FOLDER

FOLDER holds corpus.jsonl (`_id` or `id`, title, text), queries.jsonl and qrels.tsv (query, document, grade). One run
gives both sides of each comparison, on one thread of the embedder:
- nDCG@10 of our pipeline (chunks of 512/50, title in front, embedded Qdrant; best chunk per document), beside the
  ceiling: the same vectors compared exactly by numpy;
- embedding of a sample of the chunks by our batches, and by SentenceTransformer.encode with its defaults, in turns;
- the time of a query, and where it goes; the same while a document is being embedded.
"""

import argparse
import asyncio
import csv
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from app.chunking import cut
from app.messages import Index, Search
from app.settings import EmbeddingSettings
from app.vectors import Floats, Query
from deployments.embedder import Embedder
from deployments.retriever import Retriever, passage_texts
from deployments.vector_store import VectorStore

COLLECTION = "benchmark"
DEPTH = 100  # chunks fetched per query: enough for ten documents
SAMPLE, SLICES = 512, 4  # chunks that both sides embed, in turns


def records(path: Path) -> Iterator[dict[str, str]]:
    with path.open() as lines:
        for line in lines:
            record = json.loads(line)
            yield record | {"id": str(record.get("_id", record.get("id")))}


def judgments(path: Path) -> dict[str, dict[str, int]]:
    with path.open() as lines:
        rows = list(csv.reader(lines, delimiter="\t"))[1:]
    grades: dict[str, dict[str, int]] = defaultdict(dict)
    for query, document, grade in rows:
        grades[query][document] = int(grade)
    return grades


def ndcg(ranked: Iterable[str], grades: Mapping[str, int], depth: int = 10) -> float:
    """Of documents best first; the gain is the grade (as trec_eval has it)."""
    gain = sum(grades.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(list(ranked)[:depth]))
    best = sorted(grades.values(), reverse=True)[:depth]
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def ms(times: Sequence[float]) -> str:
    ordered = sorted(times)
    return f"p50 {statistics.median(ordered) * 1e3:6.1f} ms   p99 {ordered[int(len(ordered) * 0.99)] * 1e3:6.1f} ms"


async def embedding_rates(embedder: Embedder, texts: Sequence[str]) -> tuple[Floats, float, float]:
    """All vectors, and texts/s of ours and of sentence-transformers' default on the same sample."""
    reference = embedder._model._model.encode  # noqa: SLF001 - the same weights, by the library's own loop
    ours = theirs = 0.0
    sample = np.random.default_rng(0).choice(texts, min(SAMPLE, len(texts)), replace=False).tolist()
    for part in range(SLICES):
        chosen = sample[part::SLICES]
        began = time.perf_counter()
        await embedder.embed_passages(chosen)
        ours += time.perf_counter() - began
        began = time.perf_counter()
        reference(chosen, show_progress_bar=False)
        theirs += time.perf_counter() - began
    return await embedder.embed_passages(texts), len(sample) / ours, len(sample) / theirs


async def main(folder: Path) -> None:
    process = psutil.Process()
    began, before = time.perf_counter(), process.memory_info().rss
    embedder = Embedder(EmbeddingSettings(threads=1))
    grown = (process.memory_info().rss - before) / 2**20
    print(f"{folder.name}: embedder loaded in {time.perf_counter() - began:.1f} s, {grown:.0f} MB")

    documents = [
        Index(collection=COLLECTION, document_id=record["id"], title=record.get("title", ""), chunks=chunks)
        for record in records(folder / "corpus.jsonl")
        if (chunks := cut(record["text"]))
    ]
    texts = [text for document in documents for text in passage_texts(document)]
    vectors, ours, theirs = await embedding_rates(embedder, texts)
    print(f"{len(documents)} documents, {len(texts)} chunks")
    print(
        f"embedding   ours {ours:6.1f} texts/s   sentence-transformers' default {theirs:6.1f}   × {ours / theirs:.2f}"
    )

    with tempfile.TemporaryDirectory() as home:
        store = VectorStore(Path(home))
        await store.create(COLLECTION, await embedder.space())
        began, start = time.perf_counter(), 0
        for document in documents:
            end = start + len(document.chunks)
            await store.upsert(document, vectors[start:end])
            start = end
        print(f"storing     {len(texts) / (time.perf_counter() - began):6.0f} chunks/s, a call per document")
        await measure(folder, embedder, store, documents, vectors)
        await store.close()


async def measure(
    folder: Path, embedder: Embedder, store: VectorStore, documents: Sequence[Index], vectors: Floats
) -> None:
    """Quality against exact search, then times."""
    retriever, grades = Retriever(embedder, store), judgments(folder / "qrels.tsv")
    owners = [document.document_id for document in documents for _ in document.chunks]
    found, exact, whole, embedding, searching = [], [], [], [], []
    queries = [record for record in records(folder / "queries.jsonl") if record["id"] in grades]
    for record in queries:
        began = time.perf_counter()
        search = Search(query=record["text"], collections=(COLLECTION,), top_k=DEPTH, min_score=-1)
        hits = await retriever.search(search)
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        vector = await embedder.embed_query(record["text"])
        embedding.append(time.perf_counter() - began)
        began = time.perf_counter()
        await store.search(Query(vector, await embedder.space(), "default", (COLLECTION,), top_k=5, min_score=0.3))
        searching.append(time.perf_counter() - began)
        judged = grades[record["id"]]
        found.append(ndcg(dict.fromkeys(hit.document_id for hit in hits), judged))
        order = np.argsort(-(vectors @ vector), kind="stable")[:DEPTH]
        exact.append(ndcg(dict.fromkeys(owners[number] for number in order), judged))
    ours, ceiling = statistics.mean(found), statistics.mean(exact)
    print(f"nDCG@10     ours {ours:.4f}   exact search {ceiling:.4f}   {len(queries)} queries")
    print(f"query       {ms(whole)}   (top {DEPTH})")
    print(f"  embedding {ms(embedding)}")
    print(f"  search    {ms(searching)}   (top 5)")

    busy = []
    bulk = asyncio.create_task(embedder.embed_passages([text for doc in documents[:60] for text in passage_texts(doc)]))
    for record in queries:
        if bulk.done():
            break
        began = time.perf_counter()
        await embedder.embed_query(record["text"])
        busy.append(time.perf_counter() - began)
    await bulk
    print(f"  embedding {ms(busy)}   (while a document is embedded, {len(busy)} queries)")
    print(f"memory      {psutil.Process().memory_info().rss / 2**20:.0f} MB, everything in one process")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    asyncio.run(main(options.parse_args().folder))
