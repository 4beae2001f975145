"""The retriever joins an embedder and a vector store; here both are as simple as can be."""

import numpy as np
import pytest

from app.errors import InvalidRequest
from app.messages import Chunk, Index, Passage, Search
from app.vectors import Floats, Query, Space
from deployments.retriever import QUERY_CHARS, Retriever, ends, passage_texts


class Letters:
    """Embeds a text as the counts of its letters; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed_query(self, text: str) -> Floats:
        return (await self.embed_passages([text]))[0]

    async def embed_passages(self, texts: list[str]) -> Floats:
        self.asked += texts
        counts = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return (counts / np.maximum(1e-9, np.linalg.norm(counts, axis=1, keepdims=True))).astype(np.float32)

    async def space(self) -> Space:
        return Space(model="letters", dimension=26)


class Diary:
    """A vector store that writes down what happens to it."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []

    async def create(self, collection: str, space: Space) -> None:
        self.entries.append(("create", collection, space.dimension))

    async def upsert(self, index: Index, vectors: Floats) -> None:
        self.entries.append(("upsert", len(index.chunks), vectors.shape))

    async def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        self.entries.append(("delete", collection, tenant, document_id, from_chunk))

    async def search(self, query: Query) -> tuple[Passage, ...]:
        self.entries.append(("search", query.collections, query.tenant, query.top_k, query.min_score))
        return ()


def document(chunks: int, title: str = "Title") -> Index:
    made = tuple(Chunk(number=n, text=f"text {n}", start=n, end=n + 1) for n in range(chunks))
    return Index(tenant="us", collection="docs", document_id="d", title=title, chunks=made)


async def test_a_document_is_written_in_parts_and_its_old_tail_dropped_last():
    """Everything is embedded before anything is written; there is no moment without the document."""
    diary = Diary()
    assert await Retriever(Letters(), diary).index(document(300)) == 300
    assert diary.entries == [
        ("create", "docs", 26),
        ("upsert", 256, (256, 26)),
        ("upsert", 44, (44, 26)),
        ("delete", "docs", "us", "d", 300),
    ]


async def test_a_failing_embedder_leaves_the_old_version_whole():
    """Nothing was written, so what was there is still there."""

    class Broken(Letters):
        async def embed_passages(self, texts: list[str]) -> Floats:
            if self.asked:
                raise RuntimeError
            return await super().embed_passages(texts)

    diary = Diary()
    with pytest.raises(RuntimeError):
        await Retriever(Broken(), diary).index(document(300))
    assert [entry[0] for entry in diary.entries] == ["create"]


async def test_forgetting_drops_every_chunk_of_the_tenants_document():
    """From chunk 0 on."""
    diary = Diary()
    await Retriever(Letters(), diary).forget("docs", "d", "us")
    assert diary.entries == [("delete", "docs", "us", "d", 0)]


async def test_a_search_asks_for_what_the_caller_may_see():
    """Tenant, collections (each once), number and threshold reach the store."""
    diary, search = Diary(), Search(query="q", tenant="us", collections=("b", "a", "b"), top_k=7, min_score=0.1)
    await Retriever(Letters(), diary).search(search)
    assert diary.entries == [("search", ("b", "a"), "us", 7, 0.1)]


async def test_a_blank_query_finds_nothing_and_costs_nothing():
    """There is nothing to compare."""
    letters, diary = Letters(), Diary()
    assert await Retriever(letters, diary).search(Search(query=" \n\t")) == ()
    assert (letters.asked, diary.entries) == ([], [])


@pytest.mark.parametrize("numbers", [(1, 2), (0, 2), (0, 0)])
async def test_chunks_must_be_numbered_without_gaps(numbers: tuple[int, int]):
    """Dropping the old tail relies on it."""
    chunks = tuple(Chunk(number=n, text="x", start=0, end=1) for n in numbers)
    with pytest.raises(InvalidRequest, match="numbered from 0"):
        await Retriever(Letters(), Diary()).index(document(0).model_copy(update={"chunks": chunks}))


async def test_bad_collection_names_are_refused_before_any_work():
    """In every verb."""
    letters, diary = Letters(), Diary()
    retriever = Retriever(letters, diary)
    for attempt in (
        retriever.search(Search(query="q", collections=("fine", "../up"))),
        retriever.index(document(1).model_copy(update={"collection": "../up"})),
        retriever.forget("../up", "d"),
    ):
        with pytest.raises(InvalidRequest, match="no collection name"):
            await attempt
    assert (letters.asked, diary.entries) == ([], [])


def test_the_title_stands_before_every_chunk():
    """Where there is one, and no more than a title's worth of it."""
    assert passage_texts(document(2)) == ["Title\ntext 0", "Title\ntext 1"]
    assert passage_texts(document(1, title=" ")) == ["text 0"]
    assert passage_texts(document(1, title="t" * 999)) == ["t" * 200 + "\ntext 0"]


def test_of_a_very_long_query_both_ends_are_searched_for():
    """A question stands before or behind what is pasted."""
    assert ends("short") == "short"
    assert ends("a" * QUERY_CHARS) == "a" * QUERY_CHARS
    assert ends("why? " + "x" * 9999 + " how?").startswith("why? x")
    assert ends("why? " + "x" * 9999 + " how?").endswith("x how?")
    assert len(ends("x" * 9999)) == QUERY_CHARS + 1
