"""How well and how fast documents are found, against each half of the search alone and against plain fusion.

    python -m benchmarks.retrieval FOLDER...

Each FOLDER holds corpus.jsonl (`_id` or `id`, title, text), queries.jsonl and qrels.tsv (query, document, grade). One
run gives both sides of each comparison, on one thread of the embedder (how fast that is: benchmarks/ingest.py):
- nDCG@10 and Recall@10 of our pipeline (chunks of 512/50, title in front, embedded Qdrant; best chunk per document),
  beside vectors alone, words alone (BM25) and their reciprocal rank fusion (k = 60), each exact, over the same chunks;
- the difference from each of them with its 95 % interval, by a paired bootstrap over the questions;
- the time of a query for five passages, beside embedding it and the plainest call of the engine (nearest vectors of the
  tenant, with payload); embedding while a document is being embedded.

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
from qdrant_edge import FieldCondition, Filter, MatchValue, QueryRequest
from qdrant_edge import Query as EdgeQuery

from app.chunking import cut
from app.lexical import query_words
from app.messages import Index, Search
from app.prepared import passage_texts
from app.settings import EmbeddingSettings
from app.vectors import Floats, words_of
from deployments.embedder import Embedder
from deployments.retriever import Retriever, ends, in_context
from deployments.vector_store import VectorStore

COLLECTION = "benchmark"
MINE = Filter(must=[FieldCondition(key="tenant", match=MatchValue("default"))])
DEPTH = 100  # chunks fetched per query: enough for ten documents
RRF_K = 60
RESAMPLES = 10_000
WAYS = ("ours", "vectors", "words", "rrf")


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


def interval(*collections: tuple[Sequence[float], Sequence[float]]) -> str:
    """Mean difference and its 95 % interval: questions are drawn with replacement, both sides the same ones.

    collections: gains of ours and of theirs in each; collections count alike, however many questions they have.
    """
    rng, mean, means = np.random.default_rng(0), 0.0, np.zeros(RESAMPLES)
    for ours, theirs in collections:
        differences = np.array(ours) - np.array(theirs)
        mean += differences.mean() / len(collections)
        drawn = rng.integers(0, len(differences), (RESAMPLES, len(differences)))
        means += differences[drawn].mean(axis=1) / len(collections)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{mean:+.4f}   95 % [{low:+.4f}, {high:+.4f}]   {sum(len(ours) for ours, _ in collections)} questions"


def ms(times: Sequence[float]) -> str:
    ordered = sorted(times)
    return f"p50 {statistics.median(ordered) * 1e3:6.1f} ms   p99 {ordered[int(len(ordered) * 0.99)] * 1e3:6.1f} ms"


async def main(folders: Sequence[Path], cache: str) -> None:
    """cache: a folder for the embedding model's compiled form."""
    began, before = time.perf_counter(), psutil.Process().memory_info().rss
    embedder = Embedder(EmbeddingSettings(threads=1), Path(cache))
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    print(f"embedder loaded in {time.perf_counter() - began:.1f} s, {grown:.0f} MB")
    found = [await collection(folder, embedder) for folder in folders]
    if len(found) > 1:
        means = {way: statistics.mean(statistics.mean(gains[way]) for gains in found) for way in WAYS}
        print("\nnDCG@10     " + "   ".join(f"{way} {means[way]:.4f}" for way in WAYS) + "   mean of all")
        for way in WAYS[1:]:
            print(f"  ours - {way:<8} {interval(*((gains['ours'], gains[way]) for gains in found))}")


async def collection(folder: Path, embedder: Embedder) -> dict[str, list[float]]:
    """Everything about one collection. Returns nDCG@10 of each question, by way."""
    documents = [
        Index(collection=COLLECTION, document_id=record["id"], title=record.get("title", ""), chunks=chunks)
        for record in records(folder / "corpus.jsonl")
        if (chunks := cut(record["text"]))
    ]
    texts = [text for document in documents for text in passage_texts(document)]
    vectors = await embedder.embed_passages(texts)
    print(f"\n{folder.name}: {len(documents)} documents, {len(texts)} chunks")
    with tempfile.TemporaryDirectory() as home:
        store = VectorStore(Path(home))
        await store.create(COLLECTION, await embedder.space())
        began, start = time.perf_counter(), 0
        for document in documents:
            end = start + len(document.chunks)
            await store.upsert(document, in_context(vectors[start:end]))
            start = end
        print(f"storing     {len(texts) / (time.perf_counter() - began):6.0f} chunks/s, a call per document")
        gains = await measure(folder, embedder, store, documents, vectors)
        await store.close()
    return gains


def asked(text: str, top_k: int) -> Search:
    """A search that drops nothing."""
    return Search(query=text, collections=(COLLECTION,), top_k=top_k, min_score=-1)


async def measure(
    folder: Path, embedder: Embedder, store: VectorStore, documents: Sequence[Index], vectors: Floats
) -> dict[str, list[float]]:
    """Quality against each half alone and plain fusion, then times."""
    retriever, grades = Retriever(embedder, store), judgments(folder / "qrels.tsv")
    owners = [document.document_id for document in documents for _ in document.chunks]
    queries = [record for record in records(folder / "queries.jsonl") if record["id"] in grades]
    said = bm25(documents, [record["text"] for record in queries])
    gains: dict[str, list[float]] = {way: [] for way in WAYS}
    recalls: dict[str, list[float]] = {way: [] for way in WAYS}
    whole, embedding, plain = [], [], []
    shard = store._edge._open[COLLECTION].shard  # noqa: SLF001 - the engine itself
    for record, words in zip(queries, said, strict=True):
        hits = await retriever.search(asked(record["text"], DEPTH))
        began = time.perf_counter()
        await retriever.search(asked(record["text"], 5))
        whole.append(time.perf_counter() - began)
        began = time.perf_counter()
        vector = await embedder.embed_query(ends(record["text"]))
        embedding.append(time.perf_counter() - began)
        began = time.perf_counter()
        shard.query(QueryRequest(limit=5, query=EdgeQuery.Nearest(vector.tolist()), filter=MINE, with_payload=True))
        plain.append(time.perf_counter() - began)
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
        print(f"  ours - {way:<8} {interval((gains['ours'], gains[way]))}")
    floor = statistics.median(embedding) + statistics.median(plain)
    print(f"query       {ms(whole)}   top 5, × {statistics.median(whole) / floor:.2f} of the next two together")
    print(f"  embedding {ms(embedding)}")
    print(f"  engine    {ms(plain)}   nearest vectors alone")

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
    return gains


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(options.parse_args().folders, scratch))
