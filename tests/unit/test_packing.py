"""Packing: nothing is lost, nothing is cut, and rows are nearly full."""

from hypothesis import given
from hypothesis import strategies as st

from train.lessons import Lesson
from train.packing import IGNORED, packed, single


def lesson(length: int, first: int = 0) -> Lesson:
    """Tokens that count up; the latter half is learnt."""
    return Lesson(list(range(first, first + length)), [place >= length // 2 for place in range(length)])


def test_lessons_share_a_row_where_they_fit() -> None:
    """5 + 3 = 8 and 4 + 4 = 8: two rows of a window of 8."""
    rows = packed([lesson(5), lesson(4), lesson(4), lesson(3)], 8)
    assert [row["seq_lengths"] for row in rows] == [[5, 3], [4, 4]]


def test_only_what_is_learnt_has_labels() -> None:
    """The first two tokens are context."""
    assert single([lesson(4, first=7)]) == [
        {"input_ids": [7, 8, 9, 10], "labels": [IGNORED, IGNORED, 9, 10], "seq_lengths": [4]}
    ]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_no_token_is_lost(lengths: list[int]) -> None:
    """Whatever the lengths: all lessons, whole, in rows that are not too long."""
    lessons = [lesson(length, first=100 * number) for number, length in enumerate(lengths)]
    rows = packed(lessons, 64)
    assert all(len(row["input_ids"]) <= 64 for row in rows)
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(
        t for one in lessons for t in one.tokens
    )
    assert sum(len(row["seq_lengths"]) for row in rows) == len(lessons)


def test_rows_are_nearly_full() -> None:
    """Of 512 random lengths no more rows are made than one above the fewest possible of 1000 tokens each, in 20."""
    lessons = [lesson(1 + number * 7919 % 400) for number in range(512)]
    fewest = sum(len(one.tokens) for one in lessons) / 1000
    assert len(packed(lessons, 1000)) <= fewest * 1.05


def test_a_long_lesson_is_cut_behind_an_answer() -> None:
    """Two answers of two tokens; nine tokens reach into the second."""
    two = Lesson(list(range(10)), [False, False, True, True, False, False, False, False, True, True])
    assert two.within(10) == two
    assert two.within(9) == Lesson([0, 1, 2, 3], [False, False, True, True])
    assert two.within(3) is None
