"""Drafts from what was written before, and whether they pay."""

import numpy as np
import pytest

from app.llama.speculation import Luck, continuation, worthwhile


@pytest.mark.parametrize(
    ("text", "limit", "draft"),
    [
        ("the cat sat. the c", 5, "at sa"),
        ("one two, one three, one t", 3, "hre"),  # the latest place counts: behind "e t" stood "hree"
        ("abcabcab", 7, "cabcabc"),  # a text that repeats itself goes on
        ("xyz", 5, ""),  # nothing came twice
        ("ab", 5, ""),
        ("", 5, ""),
    ],
)
def test_a_draft_is_what_followed_the_last_tokens_before(text: str, limit: int, draft: str):
    """As many tokens as wanted, or none."""
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    assert bytes(continuation(tokens, limit)).decode() == draft


def flat(rows: int) -> float:
    """A machine to which rows cost almost nothing."""
    return 1.0 + 0.001 * rows


def steep(rows: int) -> float:
    """A machine to which every row costs what a step costs."""
    return float(rows)


def test_drafts_are_long_where_they_hold_and_rows_are_cheap():
    """The whole of it where it held so far."""
    assert worthwhile(0.99, 16, rows=1, seconds=flat) == 16


def test_no_draft_where_rows_are_dear():
    """A row that costs a step must hold for certain."""
    assert worthwhile(0.9, 16, rows=1, seconds=steep) == 0


def test_no_draft_where_it_fails_most_of_the_time():
    """One in fifty tokens does not pay for 3 % of a step."""
    assert worthwhile(0.02, 16, rows=1, seconds=lambda rows: 1.0 + 0.03 * rows) == 0


def test_a_full_batch_drafts_less():
    """Where a row costs 5 %: alone 16 tokens are tried at 80 %, and among 64 answers fewer or none."""
    alone, crowded = [worthwhile(0.8, 16, rows=rows, seconds=lambda rows: 1 + 0.05 * rows) for rows in (1, 64)]
    assert alone > crowded


def test_luck_is_learnt_from_drafts():
    """It begins hopeful; failures take the hope away, and it comes back with success."""
    luck = Luck()
    hopeful = luck.rate
    for _ in range(10):
        luck.learn(0, failed=True)
    assert luck.rate < 0.1 < hopeful
    for _ in range(10):
        luck.learn(8, failed=False)
    assert luck.rate > 0.9
