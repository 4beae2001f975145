"""Qdrant Edge: the engine of the embedded store, one folder with one shard per collection.

    <folder>/.lock                    held (flock) by the one process that may open the shards
    <folder>/<collection>/            an Edge shard
    <folder>/<collection>/space.json  the embedding model and dimension of its vectors

Calls block, and the engine holds the GIL while it works: use it through deployments/vector_store.py. Measured on one
core, 384 dimensions: 6,900 upserts/s with 500-character payloads; a search of an unoptimised shard costs 0.27 µs a
chunk (0.4 ms at 1,000, 5.7 ms at 20,000, 27 ms at 100,000), exact.
An upsert is in the log when it returns: a killed process loses nothing. A machine that loses power may lose what its
kernel had not written yet, so every document ends with `flush`.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    KeywordIndexParams,
    MatchValue,
    Point,
    QueryRequest,
    RangeFloat,
    ScrollRequest,
    UpdateOperation,
)
from qdrant_edge import Query as EdgeQuery

from app.errors import MindFuError, Misconfigured, Unavailable
from app.messages import Index, Passage
from app.vectors import (
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

if TYPE_CHECKING:
    from qdrant_edge import ConditionType  # exists in its stubs only

SPACE_FILE = "space.json"


@dataclass(frozen=True, slots=True)
class _Collection:
    shard: EdgeShard
    space: Space


class EdgeVectors:
    """The collections under one folder. Use from one thread at a time; `close` when done."""

    def __init__(self, folder: Path, *, lock_wait_s: float = 30.0) -> None:
        """Wait for the process that has the folder to leave it. Raises Misconfigured when it does not."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = _lock(folder / ".lock", lock_wait_s)
        self._open: dict[str, _Collection] = {}
        for leftover in folder.glob(".new-*"):  # a creation that a crash cut short
            shutil.rmtree(leftover)

    def close(self) -> None:
        """Flush and close every shard, and let the folder go."""
        while self._open:
            _, collection = self._open.popitem()
            collection.shard.close()
        self._lock.close()

    def create(self, collection: str, space: Space) -> None:
        found = self._find(collection)
        if found is None:
            with _translated():
                self._make(collection, space)
        else:
            check_space(collection, has=found.space, wanted=space)

    def upsert(self, index: Index, vectors: Floats) -> None:
        found = self._find(index.collection)
        if found is None:
            raise unknown(index.collection)
        check_vectors(index, vectors, found.space)
        with _translated():
            points = [
                Point(id=point_id(index, chunk.number), vector=vector, payload=payload(index, chunk))
                for chunk, vector in zip(index.chunks, vectors, strict=True)
            ]
            found.shard.update(UpdateOperation.upsert_points(points))

    def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        if found := self._find(collection):
            with _translated():
                gone = _matching(tenant, document_id, from_chunk)
                found.shard.update(UpdateOperation.delete_points_by_filter(gone))

    def search(self, query: Query) -> tuple[Passage, ...]:
        return best((hit for name in query.collections for hit in self._search_one(name, query)), query)

    def scroll(
        self,
        collection: str,
        tenant: str,
        document_id: str | None = None,
        after: str | None = None,
        limit: int = 256,
    ) -> Page:
        found = self._find(collection)
        if found is None:
            return Page((), None)
        wanted = _matching(tenant, document_id)
        with _translated():
            records, following = found.shard.scroll(
                ScrollRequest(offset=after, limit=limit, filter=wanted, with_payload=True)
            )
        return Page(
            tuple(stored(record.payload or {}) for record in records), None if following is None else str(following)
        )

    def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        found = self._find(collection)
        if found is None:
            return 0
        with _translated():
            return found.shard.count(CountRequest(filter=_matching(tenant, document_id)))

    def flush(self, collection: str) -> None:
        """Put everything on the disk, where it outlasts the machine's power."""
        if found := self._find(collection):
            with _translated():
                found.shard.flush()

    def _search_one(self, name: str, query: Query) -> list[Passage]:
        found = self._find(name)
        if found is None:
            return []
        check_space(name, has=found.space, wanted=query.space)
        request = QueryRequest(
            limit=query.top_k,
            query=EdgeQuery.Nearest(query.vector.tolist()),
            filter=_matching(query.tenant),
            with_payload=True,
        )
        with _translated():
            return [passage(name, hit.payload or {}, hit.score) for hit in found.shard.query(request)]

    def _find(self, collection: str) -> _Collection | None:
        if collection not in self._open:
            folder = self._folder / check_name(collection)
            if not folder.is_dir():
                return None
            with _translated():
                space = Space.model_validate_json((folder / SPACE_FILE).read_bytes())
                self._open[collection] = _Collection(EdgeShard.load(str(folder)), space)
        return self._open[collection]

    def _make(self, collection: str, space: Space) -> None:
        """Under a name of its own first, so that a crash leaves a whole collection or none."""
        new = self._folder / f".new-{collection}"
        params = EdgeVectorParams(size=space.dimension, distance=Distance.Cosine)
        shard = EdgeShard.create(str(new), EdgeConfig(vectors=params))
        for field in INDEXED_FIELDS:
            shard.update(UpdateOperation.create_field_index(field, KeywordIndexParams(is_tenant=field == "tenant")))
        shard.close()
        (new / SPACE_FILE).write_text(space.model_dump_json())
        new.rename(self._folder / collection)


def _matching(tenant: str, document_id: str | None = None, from_chunk: int = 0) -> Filter:
    conditions: list[ConditionType] = [FieldCondition(key="tenant", match=MatchValue(tenant))]
    if document_id is not None:
        conditions.append(FieldCondition(key="document_id", match=MatchValue(document_id)))
    if from_chunk:
        conditions.append(FieldCondition(key="chunk", range=RangeFloat(gte=from_chunk)))
    return Filter(must=conditions)


def _lock(path: Path, wait_s: float) -> IO[str]:
    """The open, locked file. Raises Misconfigured after wait_s: two processes in one shard would destroy it."""
    file = path.open("a+")
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            file.seek(0)
            owner = file.read().strip()
            file.close()
            problem = f"process {owner} has used {path.parent} for the {wait_s:.0f} s that we waited"
            raise Misconfigured("MINDFU_HOME", problem, "Stop that process, or set another folder.") from exc
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file


@contextmanager
def _translated() -> Iterator[None]:
    """The engine raises nothing but plain Exception, with a sentence."""
    try:
        yield
    except MindFuError:
        raise
    except Exception as exc:
        raise Unavailable("vector store", f"{type(exc).__name__}: {exc}") from exc
