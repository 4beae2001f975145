"""The Embedder deployment: queries and passages become vectors, batched while the model is busy.

Two lanes, each with a worker thread for the forward passes, so the replica's loop stays responsive: queries, which are
short and waited for, and passages, of which there may be thousands. They run side by side and share the processor as
the operating system sees fit, so neither waits for the other's pass. What arrives during a pass is the lane's next one.
Passages wait sorted by length within their call, because a batch costs what its longest text costs.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.embedding import EmbeddingModel, Tokens, mean
from app.embedding_card import Purpose
from app.errors import InvalidRequest
from app.settings import EmbeddingSettings
from app.vectors import Floats, Space


@dataclass(frozen=True, slots=True)
class _Window:
    tokens: Tokens
    vector: asyncio.Future[Floats]


class _Lane:
    """Windows that wait, and the thread that embeds them, batch after batch."""

    def __init__(self, name: str, model: EmbeddingModel, settings: EmbeddingSettings) -> None:
        self._model, self._settings = model, settings
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[_Window] = deque()
        self._pump: asyncio.Task[None] | None = None

    async def vectors(self, windows: Iterable[Tokens]) -> list[Floats]:
        """One vector for each window. Those of a caller that left are dropped before they cost a pass."""
        loop = asyncio.get_running_loop()
        jobs = [_Window(tokens, loop.create_future()) for tokens in windows]
        self._waiting.extend(sorted(jobs, key=lambda job: len(job.tokens)))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._work())
        return await asyncio.gather(*(job.vector for job in jobs))

    async def _work(self) -> None:
        """Run passes until nothing waits. The first window of a quiet time waits a moment for company."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._settings.batch_wait_s)
        while batch := self._next():
            try:
                vectors = await loop.run_in_executor(self._thread, self._model.forward, [job.tokens for job in batch])
            except Exception as exc:  # noqa: BLE001 - it belongs to those who wait for it
                for job in batch:
                    if not job.vector.done():
                        job.vector.set_exception(exc)
                continue
            for job, vector in zip(batch, vectors, strict=True):
                if not job.vector.done():
                    job.vector.set_result(vector)

    def _next(self) -> list[_Window]:
        """The windows of the next pass that somebody still waits for; none when nobody waits."""
        while self._waiting and self._waiting[0].vector.done():
            self._waiting.popleft()
        if not self._waiting:
            return []
        size = self._model.batch((job.tokens for job in self._waiting), most=self._settings.batch_size)
        return [self._waiting.popleft() for _ in range(size)]


class Embedder:
    """One embedding model, loaded once. Its vectors are float32 of unit length.

    home: where OpenVINO's form of the model is kept; None runs the model on PyTorch.
    """

    def __init__(self, settings: EmbeddingSettings, home: Path | None = None) -> None:
        self._settings = settings
        self._model = load_model(settings, home)
        self._queries = _Lane("queries", self._model, settings)
        self._passages = _Lane("passages", self._model, settings)

    async def card(self) -> tuple[str, int]:
        """The model's name and its dimension."""
        return self._model.space.model, self._model.space.dimension

    async def settings(self) -> EmbeddingSettings:
        """What it was made with, so that others can make vectors of the same space."""
        return self._settings

    async def space(self) -> Space:
        """The space of everything that comes from here."""
        return self._model.space.model_copy(update={"language": self._settings.language})

    async def check_health(self) -> None:
        """Return when the loop turns. A load that fails raises in the constructor."""

    async def embed_query(self, text: str) -> Floats:
        """What to search for, as a vector (dimension,). A long text is the mean of its windows."""
        tokens = await asyncio.to_thread(self._model.tokens, text, "query")
        return mean(np.stack(await self._queries.vectors(self._model.windows(tokens))))

    async def embed_passages(self, texts: Sequence[str]) -> Floats:
        """What can be found, as vectors (texts, dimension). A long text is the mean of its windows."""
        split = [self._model.windows(tokens) for tokens in await self._tokenised(texts, "document")]
        return await self._means(self._passages, split)

    async def embed(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """Vectors (texts, dimension) and the tokens read, special ones counted, for an API's caller.

        Raises InvalidRequest for a text that is longer than the model reads: a mean of windows is our own invention.
        """
        tokenised = await self._tokenised(texts, "plain")
        sizes = [self._model.size(tokens) for tokens in tokenised]
        for number, size in enumerate(sizes):
            if size > self._model.max_tokens:
                message = (
                    f"Input {number} is {size} tokens, '{self._model.space.model}' reads at most "
                    f"{self._model.max_tokens}. Send it in shorter pieces."
                )
                raise InvalidRequest(message, "input")
        lane = self._queries if len(texts) <= self._settings.batch_size else self._passages
        return await self._means(lane, [self._model.windows(tokens) for tokens in tokenised]), sum(sizes)

    async def _tokenised(self, texts: Sequence[str], purpose: Purpose) -> list[Tokens]:
        def tokenise() -> list[Tokens]:
            return [self._model.tokens(text, purpose) for text in texts]

        return await asyncio.to_thread(tokenise)

    async def _means(self, lane: _Lane, split: Sequence[Sequence[Tokens]]) -> Floats:
        if not split:
            return np.zeros((0, self._model.space.dimension), np.float32)
        vectors = iter(await lane.vectors([window for windows in split for window in windows]))
        return np.stack([mean(np.stack([next(vectors) for _ in windows])) for windows in split])


def load_model(settings: EmbeddingSettings, home: Path | None) -> EmbeddingModel:
    """The model as the settings say."""
    cache = home / "embedding" if home else None
    return EmbeddingModel.load(settings.model, threads=settings.threads, backend=settings.backend, cache=cache)
