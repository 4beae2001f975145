"""The reranking model: a cross-encoder reads question and passage together, and tells how well one answers the other.

Through sentence-transformers, sync and single-threaded on purpose; deployments/reranker.py gives it a process. The
import costs seconds and hundreds of megabytes, so it happens in the constructor and not when this module is imported.
"""

from collections.abc import Sequence

from app.errors import Misconfigured

SETTING = "rag.rerank"
BATCH = 16  # pairs of one forward pass, sorted by length
REMEDY = "Name a folder or a cached model of sentence-transformers' CrossEncoder, or leave rag.rerank out."


class RerankingModel:
    """One loaded cross-encoder."""

    def __init__(self, name: str, *, threads: int) -> None:
        """Raises Misconfigured: not to be found, or not a model that gives one score."""
        import torch
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        try:
            self._model = CrossEncoder(name)
        except (OSError, ValueError) as exc:
            why = " ".join(str(exc).split()).rstrip(".")
            raise Misconfigured(SETTING, f"'{name}' could not be loaded: {why}", REMEDY) from exc
        if self._model.num_labels != 1:
            problem = f"'{name}' gives {self._model.num_labels} scores for a passage, a reranker gives one"
            raise Misconfigured(SETTING, problem, REMEDY)
        self._unit = torch.nn.Sigmoid()  # some models are saved without it, and a score is between 0 and 1

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """One score for each text, from 0 to 1. Of a pair that is longer than the model reads, the end is not read."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # a batch costs what its longest does
        pairs = [(question, texts[number]) for number in order]
        found = self._model.predict(pairs, batch_size=BATCH, activation_fn=self._unit, show_progress_bar=False)
        by_number = dict(zip(order, map(float, found), strict=True))
        return [by_number[number] for number in range(len(texts))]
