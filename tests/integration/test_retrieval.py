"""Retrieval end to end: the real embedder, the real embedded store, documents found by meaning."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.messages import Chunk, Index, Search
from app.settings import EmbeddingSettings
from deployments.embedder import Embedder
from deployments.retriever import Retriever
from deployments.vector_store import VectorStore

pytestmark = pytest.mark.integration

SHELF = {
    "Bread": "Knead the dough for ten minutes, let it rise, then bake it at 220 degrees.",
    "Bicycles": "A chain needs oil every two hundred kilometres, and a new tyre every few thousand.",
    "Databases": "A transaction is durable once its log record has reached the disk.",
    "Whales": "The blue whale is the largest animal that has ever lived; it eats krill.",
}


def as_index(title: str, *texts: str, tenant: str = "default") -> Index:
    chunks = tuple(Chunk(number=n, text=text, start=0, end=len(text)) for n, text in enumerate(texts))
    return Index(tenant=tenant, collection="default", document_id=title.lower(), title=title, chunks=chunks)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(EmbeddingSettings(threads=1))


@pytest.fixture
async def retriever(embedder: Embedder, tmp_path: Path) -> AsyncIterator[Retriever]:
    store = VectorStore(tmp_path)
    retriever = Retriever(embedder, store)
    for title, text in SHELF.items():
        assert await retriever.index(as_index(title, text)) == 1
    yield retriever
    await store.close()


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("How hot must the oven be?", "Bread"),
        ("When do I lubricate my bike?", "Bicycles"),
        ("Is my data safe after a power cut?", "Databases"),
        ("What do the biggest mammals feed on?", "Whales"),
    ],
)
async def test_a_question_finds_the_passage_that_answers_it(retriever: Retriever, question: str, title: str):
    """By meaning: no question shares its rare words with the answer."""
    best, *_ = await retriever.search(Search(query=question, min_score=0.1))
    assert (best.title, best.text) == (title, SHELF[title])


async def test_nothing_relevant_finds_nothing(retriever: Retriever):
    """Below the threshold there are no passages, rather than bad ones; a collection nobody made holds none."""
    assert await retriever.search(Search(query="Who won the 1998 chess olympiad?")) == ()
    assert await retriever.search(Search(query="How hot must the oven be?", collections=("other",))) == ()


async def test_a_new_version_replaces_the_old_one(retriever: Retriever):
    """Shorter or longer, nothing of the old text is found."""
    await retriever.index(as_index("Whales", "Whales sing.", "Whales dive.", "Whales migrate."))
    await retriever.index(as_index("Whales", "Whales sleep."))
    found = await retriever.search(Search(query="whales", top_k=10))
    assert [hit.text for hit in found] == ["Whales sleep."]
    await retriever.index(as_index("Whales"))
    assert await retriever.search(Search(query="whales sleep")) == ()


async def test_a_forgotten_document_is_not_found(retriever: Retriever):
    """And the others still are."""
    await retriever.forget("default", "bread")
    found = await retriever.search(Search(query="How hot must the oven be?", min_score=-1.0, top_k=10))
    assert sorted(hit.title for hit in found) == ["Bicycles", "Databases", "Whales"]


async def test_tenants_do_not_see_each_others_documents(retriever: Retriever):
    """The same title and text of another tenant is another document."""
    await retriever.index(as_index("Bread", "Bread is baked at 300 degrees.", tenant="them"))
    found = await retriever.search(Search(query="How hot must the oven be?", tenant="them", min_score=-1.0))
    assert [hit.text for hit in found] == ["Bread is baked at 300 degrees."]
    await retriever.forget("default", "bread", "them")
    assert (await retriever.search(Search(query="How hot must the oven be?")))[0].text == SHELF["Bread"]
