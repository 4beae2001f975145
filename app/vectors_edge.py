"""Qdrant Edge: the engine of the embedded store, one folder per collection.

    <folder>/.lock                         held (flock) by the one process that may open the shards
    <folder>/<collection>/collection.json  the embedding model and dimension, and which shard counts
    <folder>/<collection>/<shard>/         an Edge shard; other shards beside it are leftovers of a crash

Calls block, and the engine holds the GIL while it works: use it through deployments/vector_store.py. Measured on one
core, 384 dimensions: 5,000 upserts/s with 500-character payloads; a search costs 0.27 µs for every chunk that is not
indexed (0.4 ms at 1,000, 5.7 ms at 20,000, 27 ms at 100,000), and is exact. Indexing 20,000 chunks (HNSW) took 30 s of
CPU for 2.3 ms a search, so it is worth it from some 50,000 on. The engine would freeze its process that long: `fork`
and `adopt` let a child do it on a copy while this process goes on.

An upsert is in the log when it returns: a killed process loses nothing. A machine that loses power may lose what came
after the last `flush`, which takes 0.1 s.
"""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal
from uuid import UUID, uuid4

from pydantic import ValidationError
from qdrant_edge import (
    CountRequest,
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeSparseVectorParams,
    EdgeVectorParams,
    FieldCondition,
    Filter,
    HasIdCondition,
    HasVectorCondition,
    IdfParams,
    KeywordIndexParams,
    MatchAny,
    MatchValue,
    Modifier,
    Point,
    QueryBatchRequest,
    QueryRequest,
    RangeFloat,
    ScrollRequest,
    SearchParams,
    SparseVector,
    UpdateOperation,
)
from qdrant_edge import Query as EdgeQuery

from app.errors import MindFuError, Misconfigured, Unavailable
from app.lexical import Words
from app.messages import Chunk, Index, Passage, Strict
from app.neighbours import Place
from app.vectors import (
    CANDIDATES,
    DENSE,
    HNSW_EF,
    INDEXED_FIELDS,
    WORDS,
    Floats,
    Page,
    PointId,
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

if TYPE_CHECKING:
    from qdrant_edge import ConditionType  # exists in its stubs only

OPTIMIZE_FROM = 50_000  # chunks that are not indexed yet: 13 ms of every search
RECORD = "collection.json"


class _Record(Strict):
    """What stands in collection.json. version: 2 has words beside the vectors."""

    version: Literal[2]
    space: Space
    shard: str


@dataclass(slots=True)
class _Collection:
    folder: Path
    record: _Record
    shard: EdgeShard
    journal: list[UpdateOperation] | None = None  # updates since `fork`
    dirty: bool = False  # holds what is not flushed

    def update(self, operation: UpdateOperation) -> None:
        self.shard.update(operation)
        self.dirty = True
        if self.journal is not None:
            self.journal.append(operation)


class EdgeVectors:
    """The collections under one folder. Use from one thread at a time; `close` when done."""

    def __init__(self, folder: Path, *, lock_wait_s: float = 30.0) -> None:
        """Wait for the process that has the folder to leave it. Raises Misconfigured when it does not."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = _lock(folder / ".lock", lock_wait_s)
        self._open: dict[str, _Collection] = {}
        self._tried: dict[str, int] = {}  # chunks that stayed unindexed after the last try to optimise

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
            check_space(collection, has=found.record.space, wanted=space)

    def check(self, index: Index, vectors: Floats) -> None:
        """Raise what `upsert` would raise, and write nothing."""
        self._open_for(index, vectors)

    def upsert(self, index: Index, vectors: Floats) -> None:
        found = self._open_for(index, vectors)
        language = found.record.space.language
        with _translated():
            points = [
                Point(
                    id=point_id(index.tenant, place),
                    vector=_named(vector, words_of(index, chunk, language)),
                    payload=payload(index, chunk),
                )
                for place, chunk, vector in zip(places_of(index), index.chunks, vectors, strict=True)
            ]
            found.update(UpdateOperation.upsert_points(points))

    def delete(self, collection: str, tenant: str, document_id: str, from_chunk: int = 0) -> None:
        if found := self._find(collection):
            with _translated():
                gone = _matching(tenant, document_id, from_chunk)
                found.update(UpdateOperation.delete_points_by_filter(gone))

    def search(self, query: Query) -> tuple[Passage, ...]:
        scores = {(name, key): score for name in query.collections for key, score in self._scores(name, query).items()}
        found = []
        for (name, key), score in shortlist(scores, query).items():
            with _translated():
                (record,) = self._open[name].shard.retrieve([key], with_payload=True, with_vector=False)
            found.append((passage(name, record.payload or {}, score), scores[name, key].cosine))
        return best(found, query)

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

    def read(self, tenant: str, places: Sequence[Place]) -> dict[Place, Chunk]:
        kept: dict[Place, Chunk] = {}
        for name in {place.collection for place in places}:
            if found := self._find(name):
                ids: dict[PointId, Place] = {point_id(tenant, at): at for at in places if at.collection == name}
                with _translated():
                    records = found.shard.retrieve(list(ids), with_payload=True, with_vector=False)
                kept |= {ids[UUID(str(record.id))]: stored(record.payload or {}).chunk for record in records}
        return kept

    def space(self, collection: str) -> Space | None:
        found = self._find(collection)
        return found.record.space if found else None

    def fetch(self, collection: str, tenant: str, document_id: str) -> tuple[Index, Floats] | None:
        found = self._find(collection)
        if found is None:
            return None
        read: list[tuple[Stored, list[float]]] = []
        offset: PointId | None = None
        while True:
            wanted = ScrollRequest(
                offset=offset,
                limit=1000,
                filter=_matching(tenant, document_id),
                with_payload=True,
                with_vector=[DENSE],
            )
            with _translated():
                records, offset = found.shard.scroll(wanted)
            read += [(stored(record.payload or {}), _dense(record.vector)) for record in records]
            if offset is None:
                return as_upserted(collection, tenant, read)

    def count(self, collection: str, tenant: str, document_id: str | None = None) -> int:
        found = self._find(collection)
        if found is None:
            return 0
        with _translated():
            return found.shard.count(CountRequest(filter=_matching(tenant, document_id)))

    @property
    def dirty(self) -> bool:
        """Whether a power cut would lose something."""
        return any(collection.dirty for collection in self._open.values())

    def flush(self) -> None:
        """Put everything on the disk, where it outlasts the machine's power."""
        for collection in self._open.values():
            if collection.dirty:
                with _translated():
                    collection.shard.flush()
                collection.dirty = False

    def due(self, optimize_from: int = OPTIMIZE_FROM) -> tuple[str, ...]:
        """The open collections that got so many chunks since the last try that searching them has become slow."""
        with _translated():
            waiting = {name: _unindexed(kept.shard) - self._tried.get(name, 0) for name, kept in self._open.items()}
        return tuple(name for name, chunks in waiting.items() if chunks >= optimize_from)

    def fork(self, collection: str) -> Path:
        """A copy of the shard, to be optimised by `python -m app.vectors_edge COPY` and then adopted."""
        found = self._find(collection)
        assert found is not None
        with _translated():
            found.shard.flush()
            copy = found.folder / uuid4().hex
            shutil.copytree(found.folder / found.record.shard, copy)
        found.journal = []
        return copy

    def adopt(self, collection: str, copy: Path) -> None:
        """Serve from the copy, with all that was written meanwhile. A crash leaves the one shard or the other."""
        found = self._find(collection)
        assert found is not None
        with _translated():
            shard = EdgeShard.load(str(copy))
            tried = _unindexed(shard)  # before what was written meanwhile, which nobody has tried to index
            for operation in found.journal or ():
                shard.update(operation)
            shard.flush()
            record = found.record.model_copy(update={"shard": copy.name})
            _write(found.folder / RECORD, record.model_dump_json())
            self._open[collection] = _Collection(found.folder, record, shard)
            found.shard.close()
            _clean(found.folder, record)
        self._tried[collection] = tried

    def abandon(self, collection: str) -> None:
        """Stay with the shard that the record names, and try again when as many chunks have come once more."""
        found = self._find(collection)
        assert found is not None
        del self._open[collection]
        with _translated():
            found.shard.close()
        self._find(collection)  # opened anew, it drops the copy
        with _translated():
            self._tried[collection] = _unindexed(self._open[collection].shard)

    def _open_for(self, index: Index, vectors: Floats) -> _Collection:
        """The collection that takes them. Raises InvalidRequest where there is none, or they do not fit."""
        found = self._find(index.collection)
        if found is None:
            raise unknown(index.collection)
        check_vectors(index, vectors, found.record.space)
        return found

    def _scores(self, name: str, query: Query) -> dict[PointId, Scores]:
        """Both scores of all chunks that are near by vector or by words."""
        found = self._find(name)
        if found is None:
            return {}
        check_space(name, has=found.record.space, wanted=query.space)
        mine, words = _matching(query.tenant), query.words
        kinds = [(EdgeQuery.Nearest(query.vector.tolist()), SearchParams(hnsw_ef=HNSW_EF))]
        if words.indices:
            said = EdgeQuery.Nearest(_sparse(words), using=WORDS)
            kinds.append((said, SearchParams(idf=IdfParams(corpus=mine))))
        halves = _asked(found.shard, kinds, [_wanted(query)] * len(kinds))
        near = set().union(*halves)
        others = [Filter(must=[HasIdCondition(near - half.keys())]) for half in halves]
        rest = _asked(found.shard, kinds, others) if len(kinds) > 1 else [{}]
        cosines, *bm25 = [half | other for half, other in zip(halves, rest, strict=True)]
        return {key: Scores(score, bm25[0].get(key, 0.0) if bm25 else 0.0) for key, score in cosines.items()}

    def _find(self, collection: str) -> _Collection | None:
        if collection not in self._open:
            folder = self._folder / check_name(collection)
            if not (folder / RECORD).exists():
                return None
            with _translated():
                record = _read(folder)
                _clean(folder, record)
                self._open[collection] = _Collection(folder, record, EdgeShard.load(str(folder / record.shard)))
        return self._open[collection]

    def _make(self, collection: str, space: Space) -> None:
        """The record comes last: without it there is no collection, whatever a crash left behind."""
        folder, record = self._folder / collection, _Record(version=2, space=space, shard=uuid4().hex)
        params = EdgeVectorParams(size=space.dimension, distance=Distance.Cosine)
        words = {WORDS: EdgeSparseVectorParams(modifier=Modifier.Idf)}
        config = EdgeConfig(vectors=params, sparse_vectors=words, max_search_threads=1)
        shard = EdgeShard.create(str(folder / record.shard), config)
        for field in INDEXED_FIELDS:
            shard.update(UpdateOperation.create_field_index(field, KeywordIndexParams(is_tenant=field == "tenant")))
        shard.flush()
        _write(folder / RECORD, record.model_dump_json())
        self._open[collection] = _Collection(folder, record, shard)
        _clean(folder, record)


def _unindexed(shard: EdgeShard) -> int:
    info = shard.info()
    words = shard.count(CountRequest(filter=Filter(must=[HasVectorCondition(WORDS)])))
    return info.points_count + words - info.indexed_vectors_count  # words are indexed as they come, and counted


def _named(vector: Floats, words: Words) -> dict[str, list[float] | SparseVector | list[list[float]]]:
    """A point's vectors. One without words has none of that name, so that `_unindexed` can count them."""
    dense: list[float] = vector.tolist()
    return {DENSE: dense, WORDS: _sparse(words)} if words.indices else {DENSE: dense}


def _dense(vectors: object) -> list[float]:
    """A point's own vector, alone or by its name."""
    found = vectors[DENSE] if isinstance(vectors, dict) else vectors
    assert isinstance(found, list)
    return found


def _sparse(words: Words) -> SparseVector:
    return SparseVector(list(words.indices), list(words.values))


def _asked(
    shard: EdgeShard, kinds: Sequence[tuple[EdgeQuery, SearchParams]], filters: Sequence[Filter]
) -> list[dict[PointId, float]]:
    """Scores of the best by each kind of query. The engine scans for each once; a prefetch would scan once more."""
    requests = [
        QueryRequest(limit=CANDIDATES, query=kind, filter=wanted, params=how)
        for (kind, how), wanted in zip(kinds, filters, strict=True)
    ]
    with _translated():
        found = shard.query_batch(QueryBatchRequest(requests))
    return [{hit.id: hit.score for hit in hits} for hits in found]


def _of(tenant: str) -> FieldCondition:
    """What every filter starts with."""
    return FieldCondition(key="tenant", match=MatchValue(tenant))


def _matching(tenant: str, document_id: str | None = None, from_chunk: int = 0) -> Filter:
    conditions: list[ConditionType] = [_of(tenant)]
    if document_id is not None:
        conditions.append(FieldCondition(key="document_id", match=MatchValue(document_id)))
    if from_chunk:
        conditions.append(FieldCondition(key="chunk", range=RangeFloat(gte=from_chunk)))
    return Filter(must=conditions)


def _wanted(query: Query) -> Filter:
    """What a query may find."""
    conditions: list[ConditionType] = [_of(query.tenant)]
    if query.only is not None:
        conditions.append(FieldCondition(key="document_id", match=MatchAny(list(query.only))))
    refused: list[ConditionType] = [FieldCondition(key="document_id", match=MatchAny(list(query.without)))]
    return Filter(must=conditions, must_not=refused if query.without else None)


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


def _read(folder: Path) -> _Record:
    """What collection.json says. Raises Unavailable where another version of MindFu wrote it."""
    try:
        return _Record.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError as exc:
        reason = f"{folder} was kept by another version of MindFu. Remove it, and index its documents again"
        raise Unavailable("vector store", reason) from exc


def _write(path: Path, text: str) -> None:
    """Replace a file as one step that outlasts a power cut."""
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _clean(folder: Path, record: _Record) -> None:
    """Drop the shards that do not count."""
    for child in folder.iterdir():
        if child.is_dir() and child.name != record.shard:
            shutil.rmtree(child)


def optimize(copy: Path) -> None:
    """Index and vacuum a shard that nobody else has open. Minutes of CPU; gives way to everything else."""
    os.nice(10)
    shard = EdgeShard.load(str(copy))
    shard.optimize()
    shard.close()


if __name__ == "__main__":
    optimize(Path(sys.argv[1]))
