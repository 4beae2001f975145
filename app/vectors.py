"""What a vector store does, and what its two implementations share: names, ids, payloads, ranking, refusals.

    EdgeVectors    app/vectors_edge.py    Qdrant's own engine in process, the embedded default; sync, because it blocks,
                                          so deployments/vector_store.py gives it a process and this interface
    RemoteVectors  app/vectors_remote.py  a Qdrant server by URL

A collection belongs to one embedding model: vectors of two models in one space compare as noise, so the model's name
is kept with the collection and another model is refused. Beside its vector a chunk has its words (app/lexical.py), and
a search fuses both: what is meant, and what is said. Tenants share collections and never see each other's chunks:
every call carries the tenant, and every filter starts with it.
"""

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from app.errors import InvalidRequest
from app.lexical import Language, Words, chunk_words, coverage, near_duplicates, query_words
from app.messages import Chunk, Index, Passage, Strict
from app.neighbours import Place
from app.outline import headed

Floats = NDArray[np.float32]
PointId = int | str | UUID
K = TypeVar("K", bound=Hashable)

COLLECTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
POINTS = UUID("a2b5c0de-5e9f-4c0c-9a3b-0d6f6d696e64")  # the namespace of our point ids; changing it orphans every point
INDEXED_FIELDS = ("tenant", "document_id")
HNSW_EF = 256  # candidates of a search: recall@10 1.00 at 55,000 clustered vectors, 0.97 with the engine's default 100
DENSE, WORDS = "", "words"  # the names of a point's two vectors
CANDIDATES = 100  # chunks nearest by vector, and as many by words, whose scores are fused
COSINE_SHARE = 0.7  # of a fused score, chosen on cranfield; the rest is BM25 as a share of the best
SPARE = 3  # times top_k chunks are read, because some of them will be dropped
ENOUGH_WORDS = 0.5  # share of the query's words that makes up for half of min_score
SAME = 0.9  # Jaccard similarity of the words of two chunks, from which the worse one tells nothing new


class Space(Strict):
    """The space of a collection: the model that made its vectors, their length, and the language of its words."""

    model: str
    dimension: int = Field(ge=1)
    language: Language = "english"


@dataclass(frozen=True, slots=True)
class Query:
    """The chunks nearest to `vector` (unit length) and `text`, over all `collections` together, of one tenant."""

    text: str
    vector: Floats
    space: Space
    tenant: str
    collections: tuple[str, ...]
    top_k: int
    min_score: float  # cosine similarity, below which a chunk is dropped, unless it holds half of the query's words
    only: tuple[str, ...] | None = None  # documents that may be found; None: all of the tenant's
    without: tuple[str, ...] = ()  # documents that may not

    @property
    def words(self) -> Words:
        """What the text asks for."""
        return query_words(self.text, self.space.language)

    @property
    def least(self) -> float:
        """The cosine below which nothing can make up for it."""
        return min(self.min_score, self.min_score / 2)


class Scores(NamedTuple):
    """How near a chunk is to a query. words: BM25."""

    cosine: float
    words: float


class Stored(Strict):
    """A chunk as it is kept."""

    document_id: str
    title: str
    chunk: Chunk


class Page(NamedTuple):
    """Some stored chunks, and the mark to go on from; None at the end."""

    chunks: tuple[Stored, ...]
    after: str | None


class Vectors(Protocol):
    """A vector store. All names of collections are checked; all raise Unavailable when the store is away."""

    async def create(self, collection: str, space: Space) -> None:
        """Make the collection unless it is there. Raises InvalidRequest where it holds vectors of another space."""

    async def upsert(self, index: Index, vectors: Floats) -> None:
        """Keep these chunks, replacing those of the same document and number. Nothing is lost once it has returned.

        vectors: (chunks, dimension). Raises InvalidRequest where the collection is unknown or the vectors do not fit.
        """

    async def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        """Drop the document's chunks numbered from_chunk or higher. What is not there is gone already: no error."""

    async def search(self, query: Query) -> tuple[Passage, ...]:
        """Best first. Unknown collections hold nothing. Raises InvalidRequest where one is of another space."""

    async def scroll(
        self,
        collection: str,
        tenant: str,
        document_id: str | None = None,
        after: str | None = None,
        limit: int = 256,
    ) -> Page:
        """Walk over the tenant's chunks, or one document's, in an order that is stable but means nothing."""

    async def read(self, tenant: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        """The tenant's chunks at these places; those that are not there are left out."""

    async def space(self, collection: str) -> Space | None:
        """What vectors a collection holds. None: there is none of that name."""

    async def fetch(self, collection: str, tenant: str, document_id: str) -> tuple[Index, Floats] | None:
        """A document as it was upserted, its vectors at unit length: what another store's `upsert` takes. None: it is
        not there.
        """

    async def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        """How many chunks the tenant, or one of its documents, has here. An unknown collection has 0."""

    async def check_health(self) -> None:
        """Return when the store answers. Raises Unavailable."""


def check_name(collection: str) -> str:
    """The name itself. Raises InvalidRequest: names become folders and URL segments."""
    if not COLLECTION_NAME.fullmatch(collection):
        message = f"'{collection[:80]}' is no collection name: use 1 to 64 letters, digits, '_' or '-'."
        raise InvalidRequest(message, "collection")
    return collection


def check_space(collection: str, *, has: Space, wanted: Space) -> None:
    """Raise InvalidRequest unless both are the same."""
    if has == wanted:
        return
    message = (
        f"Collection '{collection}' holds vectors of '{has.model}' with {has.dimension} dimensions and {has.language} "
        f"words, but the embedding model is '{wanted.model}' with {wanted.dimension} and {wanted.language} words. Set "
        f"embedding.model back to '{has.model}' and embedding.language to {has.language}, or index the documents again "
        "into another collection."
    )
    raise InvalidRequest(message, "collection")


def check_vectors(index: Index, vectors: Floats, space: Space) -> None:
    """Raise InvalidRequest unless there is one finite vector of the right length for each chunk."""
    expected = (len(index.chunks), space.dimension)
    if vectors.shape != expected:
        message = (
            f"Collection '{index.collection}' takes {expected[1]} dimensions and there are {expected[0]} chunks, "
            f"but the vectors have the shape {vectors.shape}."
        )
        raise InvalidRequest(message, "vectors")
    if not np.isfinite(vectors).all():
        raise InvalidRequest("A vector holds NaN or infinity.", "vectors")


def unknown(collection: str) -> InvalidRequest:
    """The error for writing where there is nothing to write to."""
    return InvalidRequest(f"There is no collection '{collection}'. Create it first.", "collection")


def point_id(tenant: str, place: Place) -> UUID:
    """The same chunk always gets the same id, so that writing twice is writing once; another tenant's has another."""
    return uuid5(POINTS, json.dumps([tenant, *place]))


def places_of(index: Index) -> tuple[Place, ...]:
    """Where the chunks of a document are kept."""
    return tuple(Place(index.collection, index.document_id, chunk.number) for chunk in index.chunks)


def payload(index: Index, chunk: Chunk) -> dict[str, Any]:
    """A point's payload, JSON."""
    return {
        "tenant": index.tenant,
        "document_id": index.document_id,
        "title": index.title,
        "chunk": chunk.number,
        "text": chunk.text,
        "page": chunk.page,
        "start": chunk.start,
        "end": chunk.end,
        "heading": chunk.heading,
    }


def passage(collection: str, kept: dict[str, Any], score: float) -> Passage:
    """The passage that a payload describes."""
    fields = {name: value for name, value in kept.items() if name != "tenant"}
    return Passage(collection=collection, score=score, **fields)


def stored(kept: dict[str, Any]) -> Stored:
    """The chunk that a payload describes."""
    fields = {name: kept[name] for name in ("text", "start", "end", "page")}
    chunk = Chunk(number=kept["chunk"], heading=kept.get("heading", ""), **fields)  # older ones have none
    return Stored(document_id=kept["document_id"], title=kept["title"], chunk=chunk)


def as_upserted(
    collection: str, tenant: str, found: Sequence[tuple[Stored, Sequence[float]]]
) -> tuple[Index, Floats] | None:
    """One document's chunks, in any order, as they were handed to `upsert`."""
    if not found:
        return None
    ordered = sorted(found, key=lambda one: one[0].chunk.number)
    first, chunks = ordered[0][0], tuple(kept.chunk for kept, _ in ordered)
    index = Index(tenant=tenant, collection=collection, document_id=first.document_id, title=first.title, chunks=chunks)
    return index, np.array([vector for _, vector in ordered], np.float32)


def words_of(index: Index, chunk: Chunk, language: Language) -> Words:
    """The words of a chunk, of the headings above it and of its document's title."""
    return chunk_words(f"{headed(index.title, chunk.heading)}\n{chunk.text}", language)


def fused(scores: Mapping[K, Scores]) -> dict[K, float]:
    """One score from 0 to 1 for each chunk, best first: a convex combination of cosine and of BM25 over its maximum.

    Absolute cosines keep queries comparable, and the maximum makes the weight independent of a query's length
    (Bruch et al., An Analysis of Fusion Functions for Hybrid Retrieval, 2023). Where no chunk holds a word of the
    query, the cosine is all there is.
    """
    most = max((score.words for score in scores.values()), default=0.0)
    share = COSINE_SHARE if most else 1.0
    found = {
        key: share * max(score.cosine, 0.0) + (1 - share) * score.words / (most or 1.0) for key, score in scores.items()
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1], str(item[0]))))


def shortlist(scores: Mapping[K, Scores], query: Query) -> dict[K, float]:
    """The fused scores of those chunks that are worth reading, best first."""
    worth = {key: score for key, score in fused(scores).items() if scores[key].cosine >= query.least}
    return dict(list(worth.items())[: SPARE * query.top_k])


def best(found: Iterable[tuple[Passage, float]], query: Query) -> tuple[Passage, ...]:
    """The top_k of passages with their cosines, best first: no weak one, and none that repeats a better one."""
    asked = query.words
    good = [
        passage
        for passage, cosine in found
        if cosine >= query.min_score or coverage(asked, passage.text, query.space.language) >= ENOUGH_WORDS
    ]
    good.sort(key=lambda found: found.chunk)
    good.sort(key=lambda found: (round(found.score, 4), found.document_id), reverse=True)  # of equals the newest
    repeated = near_duplicates([passage.text for passage in good], query.space.language, similarity=SAME)
    return tuple(passage for number, passage in enumerate(good) if number not in repeated)[: query.top_k]
