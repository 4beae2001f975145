"""Retrieval for tests: the real retriever over a real embedded store, with an embedder that needs no model."""

import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from app.vectors import Floats, Space
from deployments.retriever import Retriever
from deployments.vector_store import VectorStore

DIMENSION = 256


class WordEmbedder:
    """A text is the sum of its words, each of which points somewhere of its own: shared words make texts near."""

    async def embed_query(self, text: str) -> Floats:
        return (await self.embed_passages([text]))[0]

    async def embed_passages(self, texts: list[str]) -> Floats:
        vectors = np.zeros((len(texts), DIMENSION), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, zlib.crc32(word.encode()) % DIMENSION] += 1
        return vectors / np.maximum(1e-9, np.linalg.norm(vectors, axis=1, keepdims=True))

    async def space(self) -> Space:
        return Space(model="words", dimension=DIMENSION)


@asynccontextmanager
async def retrieving(folder: Path) -> AsyncIterator[tuple[Retriever, VectorStore]]:
    """A retriever and the store behind it."""
    store = VectorStore(folder)
    try:
        yield Retriever(WordEmbedder(), store), store
    finally:
        await store.close()
