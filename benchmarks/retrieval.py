"""How well and how fast documents are found, against each half of the search alone and against plain fusion.

    python -m benchmarks.retrieval FOLDER...

Each FOLDER holds corpus.jsonl (`_id` or `id`, title, text), queries.jsonl and qrels.tsv (query, document, grade). One
run gives both sides of each comparison, on one thread of the embedder:
- nDCG@10 and Recall@10 of our pipeline (chunks of 512/50, title in front, embedded Qdrant; best chunk per document),
  beside vectors alone, words alone (BM25) and their reciprocal rank fusion (k = 60), each exact, over the same chunks;
- the difference from each of them with its 95 % interval, by a paired bootstrap over the questions;
- embedding of a sample of the chunks by our batches, and by SentenceTransformer.encode with its defaults, in turns;
- the time of a query, and where it goes; the same while a document is being embedded.

The weights (app/vectors.py COSINE_SHARE, deployments/retriever.py NEIGHBOURS) were chosen on cranfield alone.
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
from numpy.typing import NDArray

from app.chunking import cut
from app.lexical import query_words
from app.messages import Index, Search
from app.settings import EmbeddingSettings
from app.vectors import Floats, Query, words_of
from deployments.embedder import Embedder
from deployments.retriever import Retriever, ends, in_context, passage_texts
from deployments.vector_store import VectorStore

COLLECTION = "benchmark"
DEPTH = 100  # chunks fetched per query: enough for ten documents
RRF_K = 60
RESAMPLES = 10_000
WAYS = ("ours", "vectors", "words", "rrf")
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


def recall(ranked: Iterable[str], grades: Mapping[str, int], depth: int = 10) -> float:
    """The share of the relevant documents among the first."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant & set(list(ranked)[:depth])) / len(relevant) if relevant else 0.0


def bm25(documents: Sequence[Index], queries: Sequence[str]) -> Floats:
    """Scores of every chunk for every query, exactly. [queries, chunks]"""
    chunks = [words_of(document, chunk, "english") for document in documents for chunk in document.chunks]
    holders: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for number, words in enumerate(chunks):
        for word, weight in zip(words.indices, words.values, strict=True):
            holders[word].append((number, weight))
    scores = np.zeros((len(queries), len(chunks)), np.float32)
    for row, query in enumerate(queries):
        asked = query_words(ends(query), "english")
        for word, times in zip(asked.indices, asked.values, strict=True):
            held = holders.get(word, ())
            idf = math.log(1 + (len(chunks) - len(held) + 0.5) / (len(held) + 0.5))
            for number, weight in held:
                scores[row, number] += times * weight * idf
    return scores


def ranks(scores: Floats) -> NDArray[np.intp]:
    """The place of each chunk, best first, from 0."""
    places = np.empty(len(scores), np.intp)
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return places


def by_document(scores: Floats, owners: Sequence[str]) -> list[str]:
    """Documents by their best chunk."""
    return list(dict.fromkeys(owners[number] for number in np.argsort(-scores, kind="stable")[: 3 * DEPTH]))


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference and its 95 % interval: questions are drawn with replacement, both sides the same ones."""
    differences = np.array(ours) - np.array(theirs)
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


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


async def main(folders: Sequence[Path]) -> None:
    began, before = time.perf_counter(), psutil.Process().memory_info().rss
    embedder = Embedder(EmbeddingSettings(threads=1))
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    print(f"embedder loaded in {time.perf_counter() - began:.1f} s, {grown:.0f} MB")
    found = [await collection(folder, embedder) for folder in folders]
    if len(found) > 1:
        print(
            "\nmean of all: "
            + "   ".join(f"{way} {statistics.mean(means[way] for means in found):.4f}" for way in WAYS)
        )


async def collection(folder: Path, embedder: Embedder) -> dict[str, float]:
    """Everything about one collection. Returns nDCG@10 by way."""
    documents = [
        Index(collection=COLLECTION, document_id=record["id"], title=record.get("title", ""), chunks=chunks)
        for record in records(folder / "corpus.jsonl")
        if (chunks := cut(record["text"]))
    ]
    texts = [text for document in documents for text in passage_texts(document)]
    vectors, ours, theirs = await embedding_rates(embedder, texts)
    print(f"\n{folder.name}: {len(documents)} documents, {len(texts)} chunks")
    print(
        f"embedding   ours {ours:6.1f} texts/s   sentence-transformers' default {theirs:6.1f}   × {ours / theirs:.2f}"
    )
    with tempfile.TemporaryDirectory() as home:
        store = VectorStore(Path(home))
        await store.create(COLLECTION, await embedder.space())
        began, start = time.perf_counter(), 0
        for document in documents:
            end = start + len(document.chunks)
            await store.upsert(document, in_context(vectors[start:end]))
            start = end
        print(f"storing     {len(texts) / (time.perf_counter() - began):6.0f} chunks/s, a call per document")
        means = await measure(folder, embedder, store, documents, vectors)
        await store.close()
    return means


async def measure(
    folder: Path, embedder: Embedder, store: VectorStore, documents: Sequence[Index], vectors: Floats
) -> dict[str, float]:
    """Quality against each half alone and plain fusion, then times."""
    retriever, grades = Retriever(embedder, store), judgments(folder / "qrels.tsv")
    owners = [document.document_id for document in documents for _ in document.chunks]
    queries = [record for record in records(folder / "queries.jsonl") if record["id"] in grades]
    said = bm25(documents, [record["text"] for record in queries])
    gains: dict[str, list[float]] = {way: [] for way in WAYS}
    recalls: dict[str, list[float]] = {way: [] for way in WAYS}
    whole, embedding, searching = [], [], []
    space = await embedder.space()
    for record, words in zip(queries, said, strict=True):
        began = time.perf_counter()
        search = Search(query=record["text"], collections=(COLLECTION,), top_k=DEPTH, min_score=-1)
        hits = await retriever.search(search)
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        vector = await embedder.embed_query(ends(record["text"]))
        embedding.append(time.perf_counter() - began)
        began = time.perf_counter()
        await store.search(Query(record["text"], vector, space, "default", (COLLECTION,), top_k=5, min_score=0.3))
        searching.append(time.perf_counter() - began)
        cosines = vectors @ vector
        fused = (1 / (RRF_K + 1 + ranks(cosines)) + 1 / (RRF_K + 1 + ranks(words))).astype(np.float32)
        ranked = {
            "ours": list(dict.fromkeys(hit.document_id for hit in hits)),
            "vectors": by_document(cosines, owners),
            "words": by_document(words, owners),
            "rrf": by_document(fused, owners),
        }
        for way, names in ranked.items():
            gains[way].append(ndcg(names, grades[record["id"]]))
            recalls[way].append(recall(names, grades[record["id"]]))
    for name, found in (("nDCG@10", gains), ("Recall@10", recalls)):
        print(f"{name:<11} " + "   ".join(f"{way} {statistics.mean(found[way]):.4f}" for way in WAYS))
    for way in WAYS[1:]:
        difference, low, high = interval(gains["ours"], gains[way])
        print(f"  ours - {way:<8} {difference:+.4f}   95 % [{low:+.4f}, {high:+.4f}]   {len(queries)} questions")
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
    return {way: statistics.mean(found) for way, found in gains.items()}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    asyncio.run(main(options.parse_args().folders))
