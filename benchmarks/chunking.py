"""What cutting documents by their structure is worth, against paragraphs alone; and neighbours, against more passages.

    python -m benchmarks.chunking --markdown FOLDER
    python -m benchmarks.chunking --pages FOLDER

Both give Markdown documents whose sections are what has to be found: nDCG@10 of sections by vectors and words fused as
ours are, computed exactly. A chunk stands for the sections that make up a third of it, or that it holds the half of.

--markdown: the .md files of a folder. A question is a sentence taken out of a section, which is sought without it
    (inverse cloze task; Lee et al., Latent Retrieval for Weakly Supervised Open Domain Question Answering, 2019).
--pages: a collection (corpus.jsonl, queries.jsonl with answers, qrels.tsv) whose ids are page#section: each page is put
    together again, its sections below headings. Also which share of the reference answers' words, but for those of the
    question, stands in the prompt within a budget of tokens: with neighbours, and with more passages instead.

The defaults (`documents.chunking`, SHORT_SECTIONS of app/chunking.py) were chosen on Node.js' manual
(--markdown /usr/share/doc/nodejs/api) and are reported on apidocs.
"""

import argparse
import asyncio
import random
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.chunking import cut, cut_as
from app.lexical import chunk_words, near_duplicates, query_words
from app.messages import Chunk, Index, Passage
from app.neighbours import Place, widened
from app.outline import Chunking, Span, outline
from app.prepared import passage_texts
from app.settings import EmbeddingSettings
from app.vectors import SAME, Floats, Scores, fused
from benchmarks.retrieval import bm25, interval, judgments, ndcg, records
from deployments.embedder import Embedder
from deployments.retriever import in_context

COMMENT = re.compile(r"<!--.*?-->\n*", re.DOTALL)
PARAGRAPH = re.compile(r"(?:^|\n\n)([A-Z][^\n|>#`*-][\s\S]*?)(?=\n\n|$)")
SENTENCE = re.compile(r"[A-Z][^.?!]{50,220}[.](?=\s|$)")
LINK = re.compile(r"\[([^\]]*)\](?:\[[^\]]*\]|\([^)]*\))")
FILE_CHARS = (10_000, 60_000)  # of the files that are taken: no index, and none that outweighs all others
QUESTIONS = 14  # of a file, each in another section
DEPTH = 100
CHARS_PER_TOKEN = 4.0  # of English text, near enough to compare two ways of filling a budget


class Sought(NamedTuple):
    """A question, and the sections that answer it by document and number. answer: "" where none is known."""

    text: str
    sections: frozenset[tuple[int, int]]
    answer: str = ""


class Manual(NamedTuple):
    """Documents with their sections, and what is asked of them."""

    titles: list[str]
    texts: list[str]
    sections: list[list[Span]]
    questions: list[Sought]


def cloze(folder: Path) -> Manual:
    """Markdown files without one sentence of some sections."""
    rng, manual = random.Random(0), Manual([], [], [], [])
    for path in sorted(folder.glob("*.md")):
        text = COMMENT.sub("", path.read_text())
        if not FILE_CHARS[0] <= len(text) <= FILE_CHARS[1]:
            continue
        found = dict(_sentences(text, rng))
        chosen = sorted(rng.sample(sorted(found), min(QUESTIONS, len(found))))
        for number in chosen:
            start, end = found[number]
            asked = LINK.sub(r"\1", text[start:end]).replace("`", "").replace("\n", " ")
            manual.questions.append(Sought(asked, frozenset([(len(manual.texts), number)])))
        for number in reversed(chosen):
            text = text[: found[number][0]] + text[found[number][1] :]
        manual.titles.append(path.stem)
        manual.texts.append(text)
        manual.sections.append(_leaves(text))
    return manual


def _sentences(text: str, rng: random.Random) -> Iterator[tuple[int, Span]]:
    """A sentence of each section that has a paragraph of two."""
    for number, (start, end) in enumerate(_leaves(text)):
        spans = [
            (start + paragraph.start(1) + sentence.start(), start + paragraph.start(1) + sentence.end())
            for paragraph in PARAGRAPH.finditer(text[start:end])
            if len(sentences := list(SENTENCE.finditer(paragraph[1]))) > 1
            for sentence in sentences
        ]
        if spans:
            yield number, rng.choice(spans)


def _leaves(text: str) -> list[Span]:
    """From heading to heading."""
    return list(pairwise([*(start for start, _ in outline(text).sections), len(text)]))


def pages(folder: Path) -> Manual:
    """A collection of sections, put together to the pages they come from."""
    bodies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in records(folder / "corpus.jsonl"):
        text = record["text"].strip().removeprefix(record["title"]).strip()
        bodies[record["id"].split("#")[0]].append((record["id"], f"## {record['title']}\n\n{text}\n\n"))
    manual, places = Manual([], [], [], []), dict[str, tuple[int, int]]()
    for url, sections in bodies.items():
        title = url.rsplit("/", 1)[1].replace("-", " ").capitalize()
        ends = list(np.cumsum([len(title) + 4, *(len(text) for _, text in sections)]))
        places |= {name: (len(manual.texts), number) for number, (name, _) in enumerate(sections)}
        manual.titles.append(title)
        manual.texts.append(f"# {title}\n\n" + "".join(text for _, text in sections))
        manual.sections.append([(int(start), int(end)) for start, end in pairwise(ends)])
    grades = judgments(folder / "qrels.tsv")
    for record in records(folder / "queries.jsonl"):
        if wanted := [name for name, grade in grades[record["id"]].items() if grade > 0]:
            answered = frozenset(places[name] for name in wanted)
            manual.questions.append(Sought(record["text"], answered, record.get("answer", "")))
    return manual


class Ranked(NamedTuple):
    """All chunks, their owners, and for each question the numbers of the best."""

    chunks: list[Chunk]
    owners: list[int]
    best: list[list[int]]


async def ranked(manual: Manual, chunking: Chunking, embedder: Embedder) -> Ranked:
    """Every question against every chunk."""
    documents = [
        Index(collection="c", document_id=str(number), title=title, chunks=cut(text, kind=cut_as("markdown", chunking)))
        for number, (title, text) in enumerate(zip(manual.titles, manual.texts, strict=True))
    ]
    vectors: Floats = np.concatenate(
        [in_context(await embedder.embed_passages(passage_texts(document))) for document in documents]
    )
    words = bm25(documents, [question.text for question in manual.questions])
    best = []
    for question, said in zip(manual.questions, words, strict=True):
        cosines = vectors @ await embedder.embed_query(question.text)
        scores = {number: Scores(float(cosine), float(said[number])) for number, cosine in enumerate(cosines)}
        best.append(list(fused(scores))[:DEPTH])
    owners = [number for number, document in enumerate(documents) for _ in document.chunks]
    return Ranked([chunk for document in documents for chunk in document.chunks], owners, best)


def gains(manual: Manual, found: Ranked) -> list[float]:
    """nDCG@10 of sections, of each question."""
    gained = []
    for question, best in zip(manual.questions, found.best, strict=True):
        names = dict.fromkeys(
            name for number in best for name in _stands_for(manual, found.owners[number], found.chunks[number])
        )
        gained.append(ndcg([str(name) for name in names], {str(name): 1 for name in question.sections}))
    return gained


def _stands_for(manual: Manual, owner: int, chunk: Chunk) -> Iterator[tuple[int, int]]:
    """Sections, the largest part of the chunk first."""
    shares = [(min(chunk.end, end) - max(chunk.start, start), end - start) for start, end in manual.sections[owner]]
    for number in sorted(range(len(shares)), key=lambda number: -shares[number][0]):
        shared, size = shares[number]
        if shared > 0 and (3 * shared >= chunk.end - chunk.start or 2 * shared >= size):
            yield owner, number


def answer_words(manual: Manual, found: Ranked, *, top_k: int, neighbours: int, budget: int) -> float:
    """The share of the answers' words that stand in the passages which fit."""
    kept = {
        Place("c", str(owner), chunk.number): chunk for owner, chunk in zip(found.owners, found.chunks, strict=True)
    }
    shares = []
    for question, best in zip(manual.questions, found.best, strict=True):
        hits = [_passage(found.owners[number], found.chunks[number]) for number in best[: 3 * top_k]]
        copies = near_duplicates([hit.text for hit in hits], "english", similarity=SAME)
        hits = [hit for number, hit in enumerate(hits) if number not in copies][:top_k]
        left, told = budget * CHARS_PER_TOKEN, ""
        for hit in widened(hits, kept, neighbours) if neighbours else hits:
            if len(hit.text) <= left:
                told, left = f"{told} {hit.text}", left - len(hit.text)
        wanted = {*query_words(question.answer, "english").indices} - {*query_words(question.text, "english").indices}
        held = set(chunk_words(told, "english").indices)
        shares.append(len(wanted & held) / len(wanted) if wanted else 1.0)
    return statistics.mean(shares)


def _passage(owner: int, chunk: Chunk) -> Passage:
    return Passage(
        document_id=str(owner), collection="c", title="", chunk=chunk.number, score=1.0,
        text=chunk.text, start=chunk.start, end=chunk.end,
    )  # fmt: skip


async def main(manual: Manual, cache: Path) -> None:
    """Both ways of cutting, then what fills a budget best."""
    embedder = Embedder(EmbeddingSettings(threads=1), cache)
    size = sum(map(len, manual.texts))
    print(f"{len(manual.texts)} documents of {size:,} characters, {len(manual.questions)} questions")
    by_way: dict[str, list[float]] = {}
    for chunking in ("plain", "structure"):
        found = await ranked(manual, chunking, embedder)
        by_way[chunking] = gains(manual, found)
        print(
            f"{chunking:<10} {len(found.chunks):5} chunks   nDCG@10 {statistics.mean(by_way[chunking]):.4f}", flush=True
        )
    print(f"  structure - plain {interval((by_way['structure'], by_way['plain']))}")
    if any(question.answer for question in manual.questions):
        for budget in (1024, 2048):
            for top_k, neighbours in ((5, 0), (5, 1), (10, 0), (20, 0), (20, 1), (20, 2)):
                share = answer_words(manual, found, top_k=top_k, neighbours=neighbours, budget=budget)
                print(f"{budget} tokens, top_k {top_k:2}, neighbours {neighbours}: {share:.3f} of the answers' words")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = options.add_mutually_exclusive_group(required=True)
    kind.add_argument("--markdown", type=Path, metavar="FOLDER")
    kind.add_argument("--pages", type=Path, metavar="FOLDER")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(cloze(chosen.markdown) if chosen.markdown else pages(chosen.pages), Path(scratch)))
