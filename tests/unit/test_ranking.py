"""How the scores of a search become a ranking."""

import numpy as np
import pytest

from app.messages import Passage
from app.vectors import Query, Scores, Space, best, fused, shortlist
from deployments.retriever import in_context

SPACE = Space(model="compass", dimension=2)


def query(text: str = "", *, top_k: int = 5, min_score: float = 0.3) -> Query:
    return Query(text, np.ones(2, np.float32), SPACE, "default", ("docs",), top_k, min_score)


def passage(text: str, score: float, chunk: int = 0) -> Passage:
    return Passage(document_id="d", collection="docs", title="", chunk=chunk, text=text, score=score, start=0, end=1)


def test_cosine_and_words_are_added_with_fixed_shares():
    """0.7 of the cosine, 0.3 of BM25 as a share of the best; best first."""
    found = fused({"near": Scores(0.8, 0.0), "said": Scores(0.4, 10.0), "both": Scores(0.6, 5.0)})
    assert list(found) == ["said", "both", "near"]
    assert found == pytest.approx({"said": 0.58, "both": 0.57, "near": 0.56})


def test_without_words_the_cosine_is_the_score():
    """A query of stop words, or whose words nobody wrote, ranks by meaning alone."""
    assert fused({"a": Scores(0.5, 0.0), "b": Scores(-0.1, 0.0)}) == {"a": 0.5, "b": 0.0}


def test_only_what_can_be_shown_is_read():
    """Three times top_k, and nothing whose cosine is below half of min_score."""
    scores = {number: Scores(0.9 - 0.1 * number, 0.0) for number in range(9)}
    assert list(shortlist(scores, query(top_k=1, min_score=0.3))) == [0, 1, 2]
    assert list(shortlist(scores, query(top_k=5, min_score=0.9))) == [0, 1, 2, 3, 4]


def test_a_weak_cosine_is_made_up_for_by_half_of_the_words():
    """Where the query's words stand in the passage, half of min_score is enough."""
    found = [(passage("Visitors park behind the house.", 0.6), 0.2), (passage("The house is old.", 0.5, 1), 0.2)]
    assert [hit.chunk for hit in best(found, query("Where do visitors park?"))] == [0]


def test_a_passage_that_repeats_a_better_one_is_left_out():
    """Its place goes to one that tells something new."""
    found = [
        (passage(text, 0.9 - 0.1 * n, n), 0.9)
        for n, text in enumerate(["The pump runs.", "the PUMP runs", "It stops."])
    ]
    assert [hit.chunk for hit in best(found, query(top_k=2))] == [0, 2]


def test_vectors_lean_towards_their_neighbours_and_stay_unit_vectors():
    """The ends have one neighbour; a document of one chunk is left alone."""
    east, north = np.eye(2, dtype=np.float32)
    leaning = in_context(np.stack([east, north, east]))
    assert np.linalg.norm(leaning, axis=1) == pytest.approx(1)
    assert leaning[1] == pytest.approx(np.array([0.5, 1]) / np.hypot(0.5, 1))
    assert leaning[0] == pytest.approx(np.array([1, 0.5]) / np.hypot(1, 0.5))
    assert (in_context(np.stack([north])) == north).all()
