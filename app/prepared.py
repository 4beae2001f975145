"""Documents that were read and wait to be written: what is kept of a file, and what is embedded of its chunks.

Apart from the deployments that use it, because the processes of bulk ingestion load it by the dozen.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from app.ids import new_id
from app.messages import Chunk, Document, Index, Metadata
from app.outline import headed
from app.reading import ReadText
from app.reading_text import clean_title, file_name
from app.vectors import Floats

TITLE_CHARS = 200  # of a longer title; the chunk is what a vector should be about


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document, read and embedded. vectors: of its passages, see `Retriever.index`."""

    document: Document
    data: bytes
    chunks: tuple[Chunk, ...]
    vectors: Floats


def new_document(
    tenant: str, collection: str, name: str, data: bytes, read: ReadText, metadata: Metadata, title: str | None = None
) -> Document:
    """The record of a file that was read. name: as the sender gave it."""
    return Document(
        id=new_id("doc_"),
        tenant=tenant,
        collection=collection,
        title=clean_title(title) or read.title,
        name=file_name(name) or None,
        media_type=read.media_type,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        chunks=len(read.chunks),
        created_at=datetime.now(UTC),
        metadata=metadata,
    )


def index_of(document: Document, chunks: tuple[Chunk, ...]) -> Index:
    """What the retriever is given of a document."""
    return Index(
        tenant=document.tenant,
        collection=document.collection,
        document_id=document.id,
        title=document.title,
        chunks=chunks,
    )


def passage_texts(index: Index) -> list[str]:
    """What is embedded of each chunk: the document's title and the headings above it stand before it.

    The title gives +1 to 2 points of nDCG@10, headings +1 to 1.5 where there are any (measured, docs/retrieval.md).
    """
    title = index.title.strip()[:TITLE_CHARS]
    return [f"{headed(title, chunk.heading)}\n{chunk.text}".lstrip("\n") for chunk in index.chunks]
