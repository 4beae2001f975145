"""Lessons of many lengths into rows of at most one window, so that no token of a batch is padding.

Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830): no lesson is
cut, and rows are nearly full. What stands in one row must not attend to each other: train/attention.py.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from train.lessons import Lesson

IGNORED = -100  # the label of a token that is no target: PyTorch's default


class Row(TypedDict):
    """Lessons behind each other, as TRL's collator wants them. labels: the tokens themselves, or IGNORED."""

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]


class _Open(NamedTuple):
    """A row with room left, ordered by how much."""

    room: int
    number: int


def packed(lessons: Sequence[Lesson], window: int) -> list[Row]:
    """Rows of at most `window` tokens. Deterministic: longest lessons first, of equals the earliest."""
    assert all(len(lesson.tokens) <= window for lesson in lessons)
    rows: list[list[Lesson]] = []
    rooms: list[_Open] = []
    for lesson in sorted(lessons, key=lambda lesson: -len(lesson.tokens)):
        place = bisect_left(rooms, _Open(len(lesson.tokens), -1))  # the fullest row in which it fits
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = window, len(rows)
            rows.append([])
        rows[number].append(lesson)
        insort(rooms, _Open(room - len(lesson.tokens), number))
    return [_row(row) for row in rows]


def single(lessons: Sequence[Lesson]) -> list[Row]:
    """Every lesson in a row of its own."""
    return [_row([lesson]) for lesson in lessons]


def _row(lessons: Sequence[Lesson]) -> Row:
    pairs = [pair for lesson in lessons for pair in zip(lesson.tokens, lesson.learnt, strict=True)]
    return {
        "input_ids": [token for token, _ in pairs],
        "labels": [token if learnt else IGNORED for token, learnt in pairs],
        "seq_lengths": [len(lesson.tokens) for lesson in lessons],
    }
