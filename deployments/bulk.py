"""The library of the server on this machine: documents go through Ray Data, and are written by its librarian.

    sources → Reading (here: the files are) → Embedding (a pool, anywhere) → Writing → outcomes

Reading cuts in the children of app/reading.py; embedding runs in processes of its own, which give way to everything
else, so that questions are answered as before; writing is the librarian's, as for every upload. The rows between the
stages are pickled lists, parcels of some hundred chunks: that is what one embedding pass can sort by length. The graph
has all CPUs, by Ray's counting, so the stages ask for none.

Starting the stages takes seconds, so a few documents go to the librarian as uploads do.
"""

import asyncio
import hashlib
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.errors import MindFuError, NotFound, Unavailable
from app.ingestion import Held, Outcome, held_of, metadata_of, refused, taken
from app.messages import Added, Metadata
from app.reading import Reader, ReadText
from app.settings import DocumentSettings, EmbeddingSettings
from app.sources import Content, Source, read
from deployments.embedder import load_model
from deployments.joining import Part
from deployments.librarian import Prepared, index_of, new_document
from deployments.retriever import passage_texts

BULK_FROM = 32  # documents from which on the stages are worth their start
PARCEL_CHUNKS = 256
PARCEL_BYTES = 16 * 2**20
BLOCK = 16  # sources that a reading process is given at once
PAGE = 1000
NICENESS = 10
TRIES, RETRY_S = 6, 5.0  # of writing


@dataclass(frozen=True, slots=True)
class Plan:
    """What every stage knows. home: of the server."""

    home: Path
    tenant: str
    collection: str
    metadata: Metadata
    private: bool
    documents: DocumentSettings
    embedding: EmbeddingSettings


@dataclass(frozen=True, slots=True)
class Read:
    """A source on its way from reading to embedding."""

    source: Source
    content: Content
    text: ReadText


class Cluster:
    """One collection of one tenant of the graph that runs in the Ray that we are a driver of.

    workers: processes that embed; None: one for each CPU of the cluster.
    """

    def __init__(
        self,
        home: Path,
        *,
        tenant: str = "default",
        collection: str = "default",
        metadata: Metadata | None = None,
        private: bool = False,
        workers: int | None = None,
        bulk_from: int = BULK_FROM,
    ) -> None:
        self._librarian = Part("Librarian")
        self._plan = Plan(
            home,
            tenant,
            collection,
            metadata or {},
            private,
            self._librarian.ask("settings"),
            Part("Embedder").ask("settings"),
        )
        self._workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._bulk_from = bulk_from

    def held(self) -> Iterator[Held]:
        """See app/ingestion.py."""
        after: str | None = None
        while True:
            page = self._librarian.ask("list", self._plan.tenant, self._plan.collection, PAGE, after)
            yield from map(held_of, page)
            if len(page) < PAGE:
                return
            after = page[-1].id

    def send(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """See app/ingestion.py."""
        if len(sources) < self._bulk_from:
            return self._one_by_one(sources, known)
        return self._in_bulk(sources, known)

    def delete(self, document: str) -> None:
        """See app/ingestion.py."""
        try:
            self._librarian.ask("delete", self._plan.tenant, document)
        except NotFound:
            return

    def _one_by_one(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        with ThreadPoolExecutor(self._plan.documents.readers, "send") as pool:
            yield from pool.map(lambda source: self._add(source, known), sources)

    def _add(self, source: Source, known: Mapping[str, str]) -> Outcome:
        plan = self._plan
        try:
            content = read(source, max_bytes=plan.documents.max_bytes, private=plan.private)
            if there := known.get(hashlib.sha256(content.data).hexdigest()):
                return Outcome(source.uri, "duplicate", document=there)
            metadata = metadata_of(source, plan.metadata)
            arguments = (content.name, content.media_type, content.data, None, metadata)
            return taken(source, self._librarian.ask("add_file", plan.tenant, plan.collection, *arguments))
        except MindFuError as error:
            return refused(source, error)

    def _in_bulk(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """The stages as Ray Data runs them: all at the same time, each with no more before it than it can take."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        rows = [{"row": pickle.dumps(sources[start : start + BLOCK])} for start in range(0, len(sources), BLOCK)]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))  # from_arrow waits for a CPU, and none is free
        stages: list[tuple[Any, tuple[object, ...], int, Any]] = [
            (Reading, (self._plan, dict(known)), 1, here),
            (Embedding, (self._plan,), self._workers, "SPREAD"),
            (Writing, (), 1, here),
        ]
        for stage, arguments, size, where in stages:
            data = data.map_batches(
                stage,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=0,
                batch_format="pyarrow",
                scheduling_strategy=where,
            )
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for outcomes in _unpacked(batch):
                yield from outcomes


class Reading:
    """Sources to parcels of what was read, and outcomes of what was not."""

    def __init__(self, plan: Plan, known: Mapping[str, str]) -> None:
        self._plan, self._known = plan, known

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for sources in _unpacked(batch):
            yield from map(_packed, asyncio.run(self._parcels(sources)))

    async def _parcels(self, sources: Sequence[Source]) -> list[list[Read | Outcome]]:
        reader = Reader(self._plan.documents)
        done = await asyncio.gather(*(self._read(reader, source) for source in sources))
        return list(parcels(done))

    async def _read(self, reader: Reader, source: Source) -> Read | Outcome:
        plan = self._plan
        try:
            content = await asyncio.to_thread(read, source, max_bytes=plan.documents.max_bytes, private=plan.private)
            if there := self._known.get(hashlib.sha256(content.data).hexdigest()):
                return Outcome(source.uri, "duplicate", document=there)
            text = await reader.read(content.data, name=content.name, media_type=content.media_type)
            return Read(source, content, text)
        except MindFuError as error:
            return refused(source, error)


class Embedding:
    """Parcels to the same with vectors."""

    def __init__(self, plan: Plan) -> None:
        os.nice(NICENESS)
        self._plan = plan
        self._model = load_model(plan.embedding, plan.home)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _packed(*map(self._embedded, _unpacked(batch)))

    def _embedded(self, parcel: Sequence[Read | Outcome]) -> list[tuple[Source, Prepared] | Outcome]:
        plan = self._plan
        found: list[tuple[Source, Prepared] | Outcome] = [one for one in parcel if isinstance(one, Outcome)]
        items = [one for one in parcel if isinstance(one, Read)]
        documents = [
            new_document(
                plan.tenant,
                plan.collection,
                one.content.name,
                one.content.data,
                one.text,
                metadata_of(one.source, plan.metadata),
            )
            for one in items
        ]
        texts = [
            passage_texts(index_of(document, one.text.chunks)) for one, document in zip(items, documents, strict=True)
        ]
        vectors = self._model.embed_passages([text for of_one in texts for text in of_one])
        ends = np.cumsum([len(of_one) for of_one in texts])
        for one, document, end in zip(items, documents, ends, strict=True):
            mine = vectors[end - document.chunks : end]
            found.append((one.source, Prepared(document, one.content.data, one.text.chunks, mine)))
        return found


class Writing:
    """Parcels with vectors to outcomes."""

    def __init__(self) -> None:
        self._librarian = Part("Librarian")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return _packed(*map(self._written, _unpacked(batch)))

    def _written(self, parcel: Sequence[tuple[Source, Prepared] | Outcome]) -> list[Outcome]:
        found = [one for one in parcel if isinstance(one, Outcome)]
        waiting = [one for one in parcel if not isinstance(one, Outcome)]
        for left in reversed(range(TRIES)):
            answers = self._add([prepared for _, prepared in waiting]) if waiting else ()
            again = [isinstance(answer, Unavailable) and left > 0 for answer in answers]
            for (source, _), answer, later in zip(waiting, answers, again, strict=True):
                if not later:
                    found.append(refused(source, answer) if isinstance(answer, MindFuError) else taken(source, answer))
            waiting = list(compress(waiting, again))
            if not waiting:
                break
            time.sleep(RETRY_S)  # what died is being replaced
        return found

    def _add(self, prepared: list[Prepared]) -> Sequence[Added | MindFuError]:
        try:
            answers: Sequence[Added | MindFuError] = self._librarian.ask("add_prepared", prepared)
        except Unavailable as error:
            return [error] * len(prepared)
        return answers


def parcels(done: Sequence[Read | Outcome]) -> Iterator[list[Read | Outcome]]:
    """What was read in parcels that are neither many chunks nor many bytes, unless one document is. Never an empty
    one.
    """
    parcel: list[Read | Outcome] = []
    chunks = size = 0
    for one in done:
        parcel.append(one)
        if isinstance(one, Read):
            chunks, size = chunks + len(one.text.chunks), size + len(one.content.data)
        if chunks >= PARCEL_CHUNKS or size >= PARCEL_BYTES:
            yield parcel
            parcel, chunks, size = [], 0, 0
    if parcel:
        yield parcel


def _packed(*rows: Sequence[object]) -> pa.Table:
    """Rows as Ray Data carries them: Arrow has no type for ours."""
    return pa.table({"row": pa.array([pickle.dumps(row) for row in rows], pa.large_binary())})


def _unpacked(table: pa.Table) -> Iterator[Any]:
    return map(pickle.loads, table.column("row").to_pylist())
