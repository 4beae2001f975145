"""Chunks and vectors as Parquet."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from app import points
from app.messages import Chunk, Index
from app.vectors import Space

SPACE = Space(model="m", dimension=2, language="german")


def index(name: str, chunks: int) -> Index:
    made = (
        Chunk(number=n, text=f"{name} {n}\0", start=n, end=n + 1, page=None if n % 2 else n + 1, heading="A › B")
        for n in range(chunks)
    )
    return Index(tenant="acme", collection="docs", document_id=name, title="Ü", chunks=tuple(made))


def test_documents_come_back_as_they_were(tmp_path: Path):
    """To the last bit of a vector, in order; a long one in several parts that follow each other."""
    documents = [(index(f"d{n}", size), np.random.default_rng(n).random((size, 2), np.float32)) for n, size in
                 enumerate((1, points.GROUP + 1, 0, 3))]  # fmt: skip
    with points.writing(tmp_path / "docs.parquet", SPACE) as add:
        for document, vectors in documents:
            add(document, vectors)
    space, found = points.read(tmp_path / "docs.parquet")
    parts = list(found)
    assert space == SPACE
    assert [part.document_id for part, _ in parts] == ["d0", "d1", "d3"]
    for document, vectors in documents:
        mine = [(part, read) for part, read in parts if part.document_id == document.document_id]
        assert tuple(chunk for part, _ in mine for chunk in part.chunks) == document.chunks
        if mine:
            assert all(
                part.model_copy(update={"chunks": ()}) == document.model_copy(update={"chunks": ()}) for part, _ in mine
            )
            assert np.array_equal(np.concatenate([read for _, read in mine]), vectors)


def test_a_collection_without_documents_has_a_space(tmp_path: Path):
    """So it is there again after a restore."""
    with points.writing(tmp_path / "docs.parquet", SPACE):
        pass
    space, found = points.read(tmp_path / "docs.parquet")
    assert (space, list(found)) == (SPACE, [])
    assert pq.read_schema(tmp_path / "docs.parquet").field("vector").type.list_size == 2
