"""A Qdrant server by URL (or `:memory:`, qdrant-client's emulation of its API, which the tests use).

The embedding model is kept in the collection's own metadata (Qdrant 1.16 or newer). The retriever holds this client
itself, so several retrievers share one server.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from app.errors import InvalidRequest, MindFuError, Unavailable
from app.lexical import Words
from app.messages import Chunk, Index, Passage
from app.neighbours import Place
from app.vectors import (
    CANDIDATES,
    DENSE,
    HNSW_EF,
    INDEXED_FIELDS,
    WORDS,
    Floats,
    Page,
    Query,
    Scores,
    Space,
    Stored,
    as_upserted,
    best,
    check_name,
    check_space,
    check_vectors,
    passage,
    payload,
    places_of,
    point_id,
    shortlist,
    stored,
    unknown,
    words_of,
)

TIMEOUT_S = 30


class RemoteVectors:
    """The collections of one server. Connects on first use, so that it can be handed to another process before."""

    def __init__(self, location: str, api_key: str | None = None) -> None:
        self._location, self._api_key = location, api_key
        self._spaces: dict[str, Space] = {}

    @cached_property
    def _client(self) -> AsyncQdrantClient:
        return AsyncQdrantClient(
            location=self._location, api_key=self._api_key, timeout=TIMEOUT_S, check_compatibility=False
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def create(self, collection: str, space: Space) -> None:
        if await self._find(collection) is None:
            try:
                await self._make(collection, space)
            except MindFuError:
                if await self._find(collection) is None:  # else another process was faster
                    raise
        if found := await self._find(collection):
            check_space(collection, has=found, wanted=space)

    async def upsert(self, index: Index, vectors: Floats) -> None:
        found = await self._find(index.collection)
        if found is None:
            raise unknown(index.collection)
        check_vectors(index, vectors, found)
        points = [
            models.PointStruct(
                id=str(point_id(index.tenant, place)),
                vector={DENSE: vector.tolist(), WORDS: _sparse(words_of(index, chunk, found.language))},
                payload=payload(index, chunk),
            )
            for place, chunk, vector in zip(places_of(index), index.chunks, vectors, strict=True)
        ]
        if points:
            with self._translated(index.collection):
                await self._client.upsert(index.collection, points, wait=True)

    async def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        if await self._find(collection):
            gone = models.FilterSelector(filter=_matching(tenant, document_id, from_chunk))
            with self._translated(collection):
                await self._client.delete(collection, gone, wait=True)

    async def search(self, query: Query) -> tuple[Passage, ...]:
        by_collection = await asyncio.gather(*(self._scores(name, query) for name in query.collections))
        scores = {
            (name, key): score
            for name, hits in zip(query.collections, by_collection, strict=True)
            for key, score in hits.items()
        }
        chosen = shortlist(scores, query)
        kept = await asyncio.gather(
            *(self._read(name, [key for of, key in chosen if of == name]) for name in query.collections)
        )
        payloads = {
            (name, key): read
            for name, reads in zip(query.collections, kept, strict=True)
            for key, read in reads.items()
        }
        found = (
            (passage(key[0], payloads[key], score), scores[key].cosine)
            for key, score in chosen.items()
            if key in payloads  # else it was deleted meanwhile
        )
        return best(found, query)

    async def scroll(
        self,
        collection: str,
        tenant: str,
        document_id: str | None = None,
        after: str | None = None,
        limit: int = 256,
    ) -> Page:
        if await self._find(collection) is None:
            return Page((), None)
        with self._translated(collection):
            records, following = await self._client.scroll(
                collection, _matching(tenant, document_id), limit=limit, offset=after, with_payload=True
            )
        chunks = tuple(stored(record.payload or {}) for record in records)
        return Page(chunks, None if following is None else str(following))

    async def read(self, tenant: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        kept: dict[Place, Chunk] = {}
        for name in {place.collection for place in places}:
            if await self._find(name):
                ids = {str(point_id(tenant, place)): place for place in places if place.collection == name}
                found = await self._read(name, list(ids))
                kept |= {ids[str(key)]: stored(record).chunk for key, record in found.items()}
        return kept

    async def space(self, collection: str) -> Space | None:
        return await self._find(collection)

    async def fetch(self, collection: str, tenant: str, document_id: str) -> tuple[Index, Floats] | None:
        if await self._find(collection) is None:
            return None
        read: list[tuple[Stored, list[float]]] = []
        offset: models.ExtendedPointId | None = None
        while True:
            with self._translated(collection):
                records, offset = await self._client.scroll(
                    collection,
                    _matching(tenant, document_id),
                    limit=1000,
                    offset=offset,
                    with_payload=True,
                    with_vectors=[DENSE],
                )
            read += [(stored(record.payload or {}), _dense(record.vector)) for record in records]
            if offset is None:
                return as_upserted(collection, tenant, read)

    async def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        if await self._find(collection) is None:
            return 0
        with self._translated(collection):
            counted = await self._client.count(collection, _matching(tenant, document_id), exact=True)
        return counted.count

    async def check_health(self) -> None:
        with self._translated():
            await self._client.get_collections()

    async def _scores(self, name: str, query: Query) -> dict[models.ExtendedPointId, Scores]:
        """Both scores of all chunks that are near by vector or by words."""
        found = await self._find(name)
        if found is None:
            return {}
        check_space(name, has=found, wanted=query.space)
        mine, wanted, words = _matching(query.tenant), _wanted(query), query.words
        kinds: list[tuple[models.NearestQuery, str | None, models.SearchParams]] = [
            (models.NearestQuery(nearest=query.vector.tolist()), None, models.SearchParams(hnsw_ef=HNSW_EF))
        ]
        if words.indices:
            of_tenant = models.SearchParams(idf=models.IdfCorpusParams(corpus=mine))
            kinds.append((models.NearestQuery(nearest=_sparse(words)), WORDS, of_tenant))
        nearest = [
            models.Prefetch(query=kind, using=using, filter=wanted, params=how, limit=CANDIDATES)
            for kind, using, how in kinds
        ]
        requests = [
            models.QueryRequest(
                prefetch=nearest, query=kind, using=using, filter=wanted, params=how, limit=2 * CANDIDATES
            )
            for kind, using, how in kinds
        ]
        with self._translated(name):
            cosines, *bm25 = await self._client.query_batch_points(name, requests)
        by_words = {hit.id: hit.score for hits in bm25 for hit in hits.points}
        return {hit.id: Scores(hit.score, by_words.get(hit.id, 0.0)) for hit in cosines.points}

    async def _read(
        self, name: str, keys: Sequence[models.ExtendedPointId]
    ) -> dict[models.ExtendedPointId, dict[str, Any]]:
        """Payloads by point."""
        if not keys:
            return {}
        with self._translated(name):
            records = await self._client.retrieve(name, keys, with_payload=True)
        return {record.id: record.payload or {} for record in records}

    async def _find(self, collection: str) -> Space | None:
        """Asked of the server until it is there, then remembered: one round trip less for every call."""
        if check_name(collection) not in self._spaces:
            with self._translated(collection):
                if not await self._client.collection_exists(collection):
                    return None
                info = await self._client.get_collection(collection)
            metadata = info.config.metadata or {}
            if "mindfu" not in metadata:
                message = (
                    f"Collection '{collection}' of {self._location} has no record of its embedding model: it was not "
                    "made by MindFu, or the server is older than Qdrant 1.16. Use another name, or a newer server."
                )
                raise InvalidRequest(message, "collection")
            self._spaces[collection] = Space.model_validate(metadata["mindfu"])
        return self._spaces[collection]

    async def _make(self, collection: str, space: Space) -> None:
        params = models.VectorParams(size=space.dimension, distance=models.Distance.COSINE)
        with self._translated(collection):
            await self._client.create_collection(
                collection,
                params,
                sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                metadata={"mindfu": space.model_dump()},
            )
            for field in INDEXED_FIELDS:
                schema = models.KeywordIndexParams(
                    type=models.KeywordIndexType.KEYWORD, is_tenant=True if field == "tenant" else None
                )
                await self._client.create_payload_index(collection, field, schema, wait=True)

    @contextmanager
    def _translated(self, collection: str | None = None) -> Iterator[None]:
        """A refusal of the server is the request's fault, silence and 5xx are the server's."""
        try:
            yield
        except MindFuError:
            raise
        except UnexpectedResponse as exc:
            self._spaces.pop(collection or "", None)  # it may have been dropped behind our back
            if exc.status_code is not None and 400 <= exc.status_code < 500 and exc.status_code not in {401, 403, 429}:
                raise InvalidRequest(f"Qdrant refused: {exc.content.decode(errors='replace')[:500]}") from exc
            raise Unavailable("vector store", f"{self._location} answered {exc.status_code}") from exc
        except (ApiException, OSError) as exc:
            raise Unavailable("vector store", f"{self._location}: {exc}") from exc


def _dense(vectors: object) -> list[float]:
    """A point's own vector, alone or by its name."""
    found = vectors[DENSE] if isinstance(vectors, dict) else vectors
    assert isinstance(found, list)
    return found


def _sparse(words: Words) -> models.SparseVector:
    return models.SparseVector(indices=list(words.indices), values=list(words.values))


def _of(tenant: str) -> models.FieldCondition:
    """What every filter starts with."""
    return _equals("tenant", tenant)


def _matching(tenant: str, document_id: str | None = None, from_chunk: int = 0) -> models.Filter:
    conditions: list[models.Condition] = [_of(tenant)]
    if document_id is not None:
        conditions.append(_equals("document_id", document_id))
    if from_chunk:
        conditions.append(models.FieldCondition(key="chunk", range=models.Range(gte=from_chunk)))
    return models.Filter(must=conditions)


def _wanted(query: Query) -> models.Filter:
    """What a query may find."""
    conditions: list[models.Condition] = [_of(query.tenant)]
    if query.only is not None:
        conditions.append(models.FieldCondition(key="document_id", match=models.MatchAny(any=list(query.only))))
    refused: list[models.Condition] = [
        models.FieldCondition(key="document_id", match=models.MatchAny(any=list(query.without)))
    ]
    return models.Filter(must=conditions, must_not=refused if query.without else None)


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
