"""The retriever joins an embedder and a vector store; here both are as simple as can be."""

from collections.abc import Sequence

import numpy as np
import pytest

from app.errors import InvalidRequest
from app.messages import Chunk, Index, Passage, Search
from app.neighbours import Place
from app.prepared import passage_texts
from app.vectors import Floats, Query, Space
from deployments.retriever import QUERY_CHARS, Retriever, ends


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


def hit(number: int, score: float) -> Passage:
    return Passage(
        document_id="d", collection="docs", title="T", heading="T › H", chunk=number, text=f"text {number}",
        score=score, start=10 * number, end=10 * number + 6,
    )  # fmt: skip


class Shelf(Diary):
    """Finds chunks 3, 1 and 0 of a document of five, in this order."""

    async def search(self, query: Query) -> tuple[Passage, ...]:
        await super().search(query)
        return (hit(3, 0.9), hit(1, 0.8), hit(0, 0.7))[: query.top_k]

    async def read(self, tenant: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        self.entries.append(("read", tenant, [place.chunk for place in places]))
        return {
            place: Chunk(
                number=place.chunk, text=f"text {place.chunk}", start=10 * place.chunk, end=10 * place.chunk + 6
            )
            for place in places
            if place.chunk < 5
        }


class Lover:
    """A reranker that likes one text; remembers what it was asked."""

    def __init__(self, liked: str) -> None:
        self.liked, self.asked = liked, list[object]()

    async def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        self.asked += [question, *texts]
        return [0.99 if self.liked in text else 0.25 for text in texts]


async def test_a_reranker_orders_the_candidates_and_gives_the_scores():
    """It reads more than are wanted, each below its title and headings; the order of equals is the one before."""
    lover, diary = Lover("text 0"), Shelf()
    found = await Retriever(Letters(), diary, lover, 30).search(Search(query="q", top_k=2))
    assert [(passage.chunk, passage.score) for passage in found] == [(0, 0.99), (3, 0.25)]
    assert lover.asked == ["q", "T › H\ntext 3", "T › H\ntext 1", "T › H\ntext 0"]
    assert diary.entries[0][3] == 30


async def test_without_a_reranker_no_more_is_fetched_than_wanted():
    """And nothing is read a second time."""
    diary = Shelf()
    assert [passage.chunk for passage in await Retriever(Letters(), diary).search(Search(query="q", top_k=2))] == [3, 1]
    assert [entry[0] for entry in diary.entries] == ["search"]


async def test_neighbours_are_read_for_those_that_are_shown():
    """After reranking, with the caller's tenant; passages that meet become one."""
    diary = Shelf()
    search = Search(query="q", tenant="us", top_k=3, neighbours=1)
    found = await Retriever(Letters(), diary).search(search)
    assert [passage.text for passage in found] == ["text 2\n\ntext 3\n\ntext 4", "text 0\n\ntext 1"]
    assert diary.entries[1] == ("read", "us", [2, 3, 4, 0, 1])


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


def test_the_title_and_the_headings_stand_before_every_chunk():
    """Where there is one, and no more than a title's worth of it; the first heading is often the title again."""
    (chunk,) = document(1).chunks
    for heading, embedded in (
        ("Install", "Title › Install"),
        ("Title › Install", "Title › Install"),
        ("Title", "Title"),
    ):
        index = document(1).model_copy(update={"chunks": (chunk.model_copy(update={"heading": heading}),)})
        assert passage_texts(index) == [f"{embedded}\ntext 0"]
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
