"""The reranker runs a real cross-encoder, one that the test builds: its scores, its place in a search, its refusals."""

from pathlib import Path

import pytest
from cross_encoders import counting_model

from app.errors import Misconfigured
from app.reranking import RerankingModel
from deployments.reranker import Reranker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model(tmp_path_factory.mktemp("cross-encoder"))


async def test_scores_stand_in_the_order_of_the_texts(folder: Path):
    """Whatever batches they were read in; each is between 0 and 1."""
    texts = ["bad", "good good good", "good", "x" * 90, "good good"] * 5
    found = await Reranker(str(folder)).scores("how", texts)
    assert found[:5] == pytest.approx(found[5:10])
    assert sorted(range(5), key=lambda number: -found[number])[:3] == [1, 4, 2]
    assert all(0 < score < 1 for score in found)


async def test_no_texts_have_no_scores(folder: Path):
    """A question that nothing was found for costs no pass."""
    assert await Reranker(str(folder)).scores("how", []) == []


def test_a_missing_model_is_named_with_the_remedy(tmp_path: Path):
    """At start, and not at the first question."""
    with pytest.raises(Misconfigured, match=r"rag\.rerank: '.*nowhere' could not be loaded: .* leave rag\.rerank out"):
        RerankingModel(str(tmp_path / "nowhere"), threads=1)


def test_a_classifier_of_several_labels_is_no_reranker(tmp_path: Path):
    """Which of its scores should count?"""
    with pytest.raises(Misconfigured, match="gives 3 scores for a passage, a reranker gives one"):
        RerankingModel(str(counting_model(tmp_path, labels=3)), threads=1)
