"""The stages of bulk ingestion, each in processes of its own: what to read becomes what to write.

    sources → Reading → parcels → Embedding → parcels with vectors

Rows are pickled lists, for Arrow has no type for ours. A parcel is what one pass of embedding can sort by length, and
small enough for all processes to end at about the same time. deployments/bulk.py arranges them, and writes what comes
out. Little is imported here: every process of a pool loads this module before it does anything.
"""

import asyncio
import hashlib
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from app.errors import MindFuError
from app.ingestion import Outcome, metadata_of, refused
from app.messages import Metadata
from app.prepared import Prepared, index_of, new_document, passage_texts
from app.reading import Reader, ReadText
from app.settings import DocumentSettings, EmbeddingSettings
from app.sources import Content, Source, read
from deployments.embedder import load_model

PARCEL_CHUNKS = 128  # 256 would be embedded 0.4 % faster, and leave a process idle for twice as long at the end
PARCEL_BYTES = 16 * 2**20
NICENESS = 10


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


class Reading:
    """Sources to parcels of what was read, and outcomes of what was not."""

    def __init__(self, plan: Plan, known: Mapping[str, str]) -> None:
        self._plan, self._known = plan, known

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """batch: rows of sources."""
        for sources in unpacked(batch):
            yield from map(packed, asyncio.run(self._parcels(sources)))

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
        """batch: rows of parcels."""
        return packed(*map(self._embedded, unpacked(batch)))

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


def packed(*rows: Sequence[object]) -> pa.Table:
    """Rows as Ray Data carries them."""
    return pa.table({"row": pa.array([pickle.dumps(row) for row in rows], pa.large_binary())})


def unpacked(table: pa.Table) -> Iterator[Any]:
    """What is in the rows."""
    return map(pickle.loads, table.column("row").to_pylist())
