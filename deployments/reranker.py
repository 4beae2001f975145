"""The Reranker deployment: the cross-encoder of `rag.rerank`, in a process of its own. Not there unless it is set."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from app.reranking import RerankingModel


class Reranker:
    """One reranking model, loaded once. Questions take turns: a pass over all passages of one is one piece of work."""

    def __init__(self, model: str, threads: int = 1) -> None:
        """Raises Misconfigured."""
        self._model = RerankingModel(model, threads=threads)
        self._thread = ThreadPoolExecutor(1, "rerank")

    async def check_health(self) -> None:
        """Return when the loop turns. A load that fails raises in the constructor."""

    async def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question, from 0 to 1."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.scores, question, texts)
