"""How long a backup and a restore take, and how large the archive is.

    python -m benchmarks.backup [--documents 2000] [--chunks 10] [--dimension 384]

Documents with made-up vectors and text from Python's own language reference are taken in as all are; then `app.backup`
and `app.restore` work on the embedded stores, in one process, without a server. Not measured: an object store, whose
speed is its network's.
"""

import argparse
import asyncio
import hashlib
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from app import vectors
from app.backup import Stores, backup
from app.documents import new_id
from app.messages import Chunk, Document
from app.prepared import Prepared
from app.restore import restore
from app.settings import DocumentSettings
from benchmarks.store import CHUNK_WORDS, Supply
from deployments.librarian import Librarian
from deployments.retriever import Retriever
from deployments.vector_store import VectorStore

BATCH = 64


class Embedder:
    """One that only says what its vectors are."""

    def __init__(self, dimension: int) -> None:
        self._space = vectors.Space(model="made up", dimension=dimension)

    async def space(self) -> vectors.Space:
        return self._space


async def fill(home: Path, documents: int, chunks: int, dimension: int) -> None:
    """Take documents in."""
    store, supply = VectorStore(home), Supply(dimension)
    retriever = Retriever(Embedder(dimension), store)  # type: ignore[arg-type]
    librarian = Librarian(retriever, DocumentSettings(), home)
    for start in range(0, documents, BATCH):
        some = [made(supply, number, chunks) for number in range(start, min(start + BATCH, documents))]
        await librarian.add_prepared(some)
    await librarian.close()
    await store.close()


def made(supply: Supply, number: int, chunks: int) -> Prepared:
    """A document, read and embedded."""
    texts = [supply.text(CHUNK_WORDS) for _ in range(chunks)]
    data = f"{number}\n".encode() + "\n".join(texts).encode()
    document = Document(
        id=new_id(),
        collection="benchmark",
        title=f"Document {number}",
        media_type="text/plain",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        chunks=chunks,
        created_at=datetime.now(UTC),
        metadata={},
    )
    cut = tuple(Chunk(number=n, text=text, start=0, end=len(text)) for n, text in enumerate(texts))
    return Prepared(document, data, cut, supply.vectors(chunks))


async def main(documents: int, chunks: int, dimension: int) -> None:
    """Fill, back up, restore."""
    with tempfile.TemporaryDirectory() as folder:
        home, new = Path(folder) / "home", Path(folder) / "new"
        began = time.perf_counter()
        await fill(home, documents, chunks, dimension)
        print(f"{documents} documents, {documents * chunks} chunks taken in: {time.perf_counter() - began:6.1f} s")
        store, began = VectorStore(home), time.perf_counter()
        place, manifest = await backup(Stores(None, home, store), folder)
        size = sum(member.size for member in manifest.members.values()) / 1e6
        print(f"backup:  {time.perf_counter() - began:6.1f} s, {size:.1f} MB, {len(manifest.members)} files")
        await store.close()
        store, began = VectorStore(new), time.perf_counter()
        await restore(Stores(None, new, store), place)
        print(f"restore: {time.perf_counter() - began:6.1f} s")
        await store.close()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--documents", type=int, default=2000)
    options.add_argument("--chunks", type=int, default=10)
    options.add_argument("--dimension", type=int, default=384)
    chosen = options.parse_args()
    asyncio.run(main(chosen.documents, chosen.chunks, chosen.dimension))
