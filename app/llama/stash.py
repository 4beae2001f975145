"""Beginnings whose cells were needed, kept in ordinary memory: the KV cache's second storey. Pure bookkeeping.

Cells that nobody reads still cost every decode step, because llama.cpp looks at the mask of each; here they cost
nothing, and come back by a copy, which is far cheaper than to decode them again.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
CellBytes = NDArray[np.uint8]
GLANCE = 32  # tokens: most pairs of sequences differ so early


class Saved(NamedTuple):
    """Tokens and their cells, as llama.cpp writes them. owner: adapter and tenant."""

    owner: Hashable
    tokens: Tokens
    cells: CellBytes


def common_prefix(one: Tokens, other: Tokens) -> int:
    """Length of the longest common beginning."""
    size = min(len(one), len(other))
    for end in (min(size, GLANCE), size):
        differs = one[:end] != other[:end]
        if differs.any():
            return int(differs.argmax())
    return size


class Stash:
    """Saved beginnings of at most `limit` bytes, the least recently used first to go."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._saved: list[Saved] = []  # the least recently used first
        self.bytes = 0

    def put(self, owner: Hashable, tokens: Tokens, save: Callable[[], CellBytes]) -> bool:
        """Keep a sequence, instead of all that are beginnings of it. save: copies its cells, where that is worth it.

        False where it is not kept: one that goes on is, or it is larger than all of the stash.
        """
        if not self._limit or any(self._begins(tokens, one) for one in self._saved if one.owner == owner):
            return False
        cells = save()
        if len(cells) > self._limit:
            return False
        self._keep_only(lambda one: one.owner != owner or not self._begins(one.tokens, Saved(owner, tokens, cells)))
        self._saved.append(Saved(owner, tokens, cells))
        self.bytes += len(cells)
        while self.bytes > self._limit:
            self.bytes -= len(self._saved.pop(0).cells)
        return True

    def longest(self, owner: Hashable, wanted: Tokens) -> tuple[Saved | None, int]:
        """What begins most like `wanted`, and how many tokens they have in common."""
        best, length = None, 0
        for one in self._saved:
            if one.owner == owner and (common := common_prefix(wanted, one.tokens)) > length:
                best, length = one, common
        return best, length

    def touch(self, saved: Saved) -> None:
        """It was used: it goes last."""
        self._saved = [*(one for one in self._saved if one is not saved), saved]

    def disown(self, owns: Callable[[Hashable], bool]) -> None:
        """Give up what belongs to these owners."""
        self._keep_only(lambda one: not owns(one.owner))

    def _keep_only(self, wanted: Callable[[Saved], bool]) -> None:
        self._saved = [one for one in self._saved if wanted(one)]
        self.bytes = sum(len(one.cells) for one in self._saved)

    def _begins(self, tokens: Tokens, other: Saved) -> bool:
        return common_prefix(tokens, other.tokens) == len(tokens)
