"""A collection's chunks and vectors as a Parquet file, in the order of documents: any store's, for any store.

    with writing(file, space) as add:               # schema and space stand in the file
        add(index, vectors)                         # a document; see app/vectors.py
    space, documents = read(file)
    for index, vectors in documents: ...            # what `upsert` takes; a long document comes in several parts

The words' half of a search is not here: it is made of the texts again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.messages import Chunk, Index
from app.vectors import Floats, Space

SPACE = b"mindfu.space"
GROUP = 4096  # chunks of a row group: 6 MB of vectors of 384 numbers


@contextmanager
def writing(file: Path, space: Space) -> Iterator[Callable[[Index, Floats], None]]:
    """A new file. The function appends a document's chunks."""
    schema = _schema(space)
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def add(index: Index, vectors: Floats) -> None:
            about = {"tenant": index.tenant, "document_id": index.document_id, "title": index.title}
            for chunk, vector in zip(index.chunks, vectors, strict=True):
                waiting.append({**about, **chunk.model_dump(), "vector": vector})
            if len(waiting) >= GROUP:
                flush()

        yield add
        flush()


def read(file: Path) -> tuple[Space, Iterator[tuple[Index, Floats]]]:
    """The space, and the documents as they were added. The collection's name is that of the file."""
    opened = pq.ParquetFile(file)
    space = Space.model_validate_json(opened.schema_arrow.metadata[SPACE])
    return space, _documents(opened, file.stem)


def _documents(opened: pq.ParquetFile, collection: str) -> Iterator[tuple[Index, Floats]]:
    for number in range(opened.num_row_groups):
        rows = opened.read_row_group(number).to_pylist()
        for (tenant, document_id, title), of in groupby(
            rows, key=lambda row: (row["tenant"], row["document_id"], row["title"])
        ):
            chunks = list(of)
            vectors = np.array([row["vector"] for row in chunks], np.float32)
            fields = [{name: row[name] for name in Chunk.model_fields} for row in chunks]
            index = Index(
                tenant=tenant,
                collection=collection,
                document_id=document_id,
                title=title,
                chunks=tuple(map(Chunk.model_validate, fields)),
            )
            yield index, vectors


def _schema(space: Space) -> pa.Schema:
    columns = [
        *((name, pa.string(), False) for name in ("tenant", "document_id", "title", "text", "heading")),
        *((name, pa.int64(), False) for name in ("number", "start", "end")),
        ("page", pa.int64(), True),
        ("vector", pa.list_(pa.float32(), space.dimension), False),
    ]
    fields = [pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns]
    return pa.schema(fields, metadata={SPACE: space.model_dump_json().encode()})
