"""Speculation by prompt lookup: what followed the last words earlier may follow them again (arXiv:2304.04487).

A draft is verified in the same decode as the token before it, and goes on only while the sampler draws what it says:
the answer is the one that would have come without. Whether a draft is worth its rows is decided for each step, from
how often drafts of this answer held and what a row costs on this machine.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
SIZES = (3, 2)  # tokens that must recur; the longer says more
MEMORY = 0.8  # how much of the experience outlives a draft


def continuation(tokens: Tokens, limit: int) -> list[int]:
    """What may come next, by the latest place where the end of `tokens` stood before; empty where there is none.

    A text that repeats itself goes on repeating, so a draft may be longer than what is there to copy.
    """
    for size in SIZES:
        if len(tokens) <= size:
            continue
        recurs = tokens[size - 1 : -1] == tokens[-1]
        for back in range(2, size + 1):
            recurs &= tokens[size - back : -back] == tokens[-back]
        places = np.flatnonzero(recurs)
        if len(places):
            start = int(places[-1]) + size
            following: list[int] = tokens[start + np.arange(limit) % (len(tokens) - start)].tolist()
            return following
    return []


class Luck:
    """How likely the next token of a draft holds, by the drafts before. Begins in doubt: untried ones teach, too."""

    __slots__ = ("_failed", "_held")

    def __init__(self) -> None:
        self._held, self._failed = 1.0, 1.5

    def learn(self, held: int, *, failed: bool) -> None:
        """So many tokens of a draft held, and then one did not, or the draft was over."""
        self._held = MEMORY * self._held + held
        self._failed = MEMORY * self._failed + failed

    @property
    def rate(self) -> float:
        """Between 0 and 1."""
        return self._held / (self._held + self._failed)


def worthwhile(rate: float, limit: int, *, rows: int, seconds: Callable[[int], float]) -> int:
    """How many draft tokens to add to a step of so many rows: those with the most tokens a second expected.

    rate: of drafts that hold; limit: the longest draft; seconds: the time of a step by its rows.
    """
    best, best_speed = 0, rows / max(seconds(rows), 1e-9)
    length = 1
    while length <= limit:
        expected = rate * (1 - rate**length) / (1 - rate) if rate < 1 else length
        speed = (rows + expected) / max(seconds(rows + length), 1e-9)
        if speed > best_speed:
            best, best_speed = length, speed
        length = limit if length < limit < 2 * length else 2 * length
    return best
