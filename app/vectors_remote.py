"""A Qdrant server by URL (or `:memory:`, qdrant-client's emulation of its API, which the tests use).

The embedding model is kept in the collection's own metadata (Qdrant 1.16 or newer). The retriever holds this client
itself, so several retrievers share one server.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from app.errors import InvalidRequest, MindFuError, Unavailable
from app.messages import Index, Passage
from app.vectors import (
    HNSW_EF,
    INDEXED_FIELDS,
    Floats,
    Page,
    Query,
    Space,
    best,
    check_name,
    check_space,
    check_vectors,
    passage,
    payload,
    point_id,
    stored,
    unknown,
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
                id=str(point_id(index, chunk.number)), vector=vector.tolist(), payload=payload(index, chunk)
            )
            for chunk, vector in zip(index.chunks, vectors, strict=True)
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
        found = await asyncio.gather(*(self._search_one(name, query) for name in query.collections))
        return best((hit for hits in found for hit in hits), query)

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

    async def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        if await self._find(collection) is None:
            return 0
        with self._translated(collection):
            counted = await self._client.count(collection, _matching(tenant, document_id), exact=True)
        return counted.count

    async def check_health(self) -> None:
        with self._translated():
            await self._client.get_collections()

    async def _search_one(self, name: str, query: Query) -> list[Passage]:
        found = await self._find(name)
        if found is None:
            return []
        check_space(name, has=found, wanted=query.space)
        with self._translated(name):
            hits = await self._client.query_points(
                name,
                query.vector.tolist(),
                query_filter=_matching(query.tenant),
                limit=query.top_k,
                search_params=models.SearchParams(hnsw_ef=HNSW_EF),
                with_payload=True,
            )
        return [passage(name, hit.payload or {}, hit.score) for hit in hits.points]

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
            await self._client.create_collection(collection, params, metadata={"mindfu": space.model_dump()})
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


def _matching(tenant: str, document_id: str | None = None, from_chunk: int = 0) -> models.Filter:
    conditions: list[models.Condition] = [_equals("tenant", tenant)]
    if document_id is not None:
        conditions.append(_equals("document_id", document_id))
    if from_chunk:
        conditions.append(models.FieldCondition(key="chunk", range=models.Range(gte=from_chunk)))
    return models.Filter(must=conditions)


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
