"""The prefix cache: which sequences of the KV cache hold which tokens. Pure bookkeeping, one thread at a time.

What a finished request leaves behind stays until its place is needed, the least recently used first, and then moves to
the stash; at once, where sequences do not share their cells, which then stay as well until another one takes the
sequence. A new request shares the longest beginning that it has in
common with any sequence, running, kept or stashed, of the same owner: cells depend on the adapter, and another tenant's
must not show in counts or times.
"""

from bisect import insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from app.llama.stash import CellBytes, Saved, Stash, Tokens, common_prefix

WORTH_COPYING = 32  # tokens: fewer are decoded again as fast


class Cells(Protocol):
    """The KV cache.

    shared: by all sequences; else each has cells of its own. share: give a free sequence the first `length` tokens of
    another, False where it cannot; copy: all of them; save: copy a sequence out; restore: give a free sequence the
    first `length` tokens of a copy; 0 where it lacks some, None for want of room; shorten: to its first `length`
    tokens, False, and it is empty, where it lacks some.
    """

    @property
    def shared(self) -> bool: ...

    def share(self, source: int, target: int, length: int) -> bool: ...

    def copy(self, source: int, target: int) -> None: ...

    def save(self, sequence: int) -> CellBytes: ...

    def restore(self, target: int, saved: CellBytes, length: int) -> int | None: ...

    def shorten(self, sequence: int, length: int) -> bool: ...

    def forget(self, sequence: int) -> None: ...


class Holding(NamedTuple):
    """A sequence and the tokens that it holds. owner: adapter and tenant."""

    sequence: int
    owner: Hashable
    tokens: Tokens


@dataclass(slots=True)
class PrefixCounts:
    """What the prefix cache holds and did."""

    kept_sequences: int = 0  # and those in which cells of their own still lie
    kept_tokens: int = 0  # of distinct beginnings
    hit_tokens: int = 0  # of prompts, that needed no prefill
    evictions: int = 0  # sequences whose cells were needed for others
    stashed_bytes: int = 0


class PrefixCache:
    """Hands out the sequences of `cells`.

    shares: whether requests may have anything of each other; limit: tokens that finished ones may leave behind in the
    cells; stash: bytes beside them. There are always more sequences than requests that run, where limit is above 0.
    """

    def __init__(self, cells: Cells, *, sequences: int, limit: int, stash: int = 0, shares: bool = True) -> None:
        self._cells, self._limit, self._stash = cells, limit, Stash(stash)
        self._free = list(range(sequences))  # in order
        self._kept: dict[int, Holding] = {}  # by sequence, the least recently used first
        self._left: dict[int, Holding] = {}  # by free sequence: with cells of their own, what still lies there
        self.shares = shares
        self.counts = PrefixCounts()

    def begin(self, owner: Hashable, prompt: Tokens, running: Iterable[Holding] = ()) -> tuple[int, int]:
        """A sequence for a prompt, and how many of its tokens that holds already: never the last one.

        The last is decoded again in any case, because its logits begin the answer.
        """
        donor, length = self._donor(owner, prompt[:-1], running) if self.shares else (-1, 0)
        saved, longer = self._stash.longest(owner, prompt[:-1])
        if donor in self._kept:
            self._touch(donor)
        if saved and longer >= length + WORTH_COPYING and (sequence := self._resume(saved, longer)) is not None:
            self.counts.hit_tokens += longer
            return sequence, longer
        if saved and longer >= length + WORTH_COPYING:
            length = self._restore(sequence := self.take(), saved, longer)
        elif length >= WORTH_COPYING or (length and self._cells.shared):
            length = length if self._cells.share(donor, sequence := self.take(), length) else 0
        else:
            sequence, length = self._take_over(owner, prompt[:-1])
        self.counts.hit_tokens += length
        return sequence, length

    def take(self) -> int:
        """An empty sequence, the first one."""
        if not self._free:
            self.evict()
        sequence = self._free.pop(0)
        if self._left.pop(sequence, None) is not None:
            self._cells.forget(sequence)
            self._count()
        return sequence

    def _take_over(self, owner: Hashable, wanted: Tokens) -> tuple[int, int]:
        """The first free sequence, with as much of a prompt's beginning as still lies in it: few tokens, at no cost."""
        left = self._left.get(self._free[0]) if self._free else None
        common = common_prefix(wanted, left.tokens) if left and left.owner == owner else 0
        if not common:
            return self.take(), 0
        sequence = self._free.pop(0)
        del self._left[sequence]
        self._count()
        return sequence, common if self._cells.shorten(sequence, common) else 0

    def close_gap(self, sequence: int) -> int:
        """Move a running sequence to the first free one, where that comes before it. Returns where it is then."""
        if not self._free or self._free[0] > sequence:
            return sequence
        target = self.take()
        self._cells.copy(sequence, target)
        self.drop(sequence)
        return target

    def keep(self, holding: Holding) -> None:
        """A request is over: keep what its sequence holds, instead of all that is a beginning of it."""
        for other in self._akin(holding):
            common = common_prefix(holding.tokens, other.tokens)
            if common == len(holding.tokens):
                self._touch(other.sequence)
                self.drop(holding.sequence)
                return
            if common == len(other.tokens):
                self._remove(other)
        if not 0 < len(holding.tokens) <= self._limit:
            if self._save(holding) and not self._cells.shared:
                self._left[holding.sequence] = holding
                insort(self._free, holding.sequence)
                self._count()
            else:
                self.drop(holding.sequence)
            return
        self.counts.kept_tokens += self._own(holding)
        self._kept[holding.sequence] = holding
        self._count()
        while self.counts.kept_tokens > self._limit:
            self.evict()

    def drop(self, sequence: int) -> None:
        """A request is over, and nothing of it is worth keeping."""
        self._cells.forget(sequence)
        insort(self._free, sequence)

    def evict(self) -> bool:
        """Move the least recently used sequence out of the cells; False where none is kept."""
        if not self._kept:
            return False
        holding = next(iter(self._kept.values()))
        self._save(holding)
        self._remove(holding)
        self.counts.evictions += 1
        return True

    def disown(self, owns: Hashable) -> None:
        """Give up what an adapter's owners left behind. owns: the first part of the owners."""

        def of_it(owner: Hashable) -> bool:
            return isinstance(owner, tuple) and owner[0] == owns

        for holding in [held for held in self._kept.values() if of_it(held.owner)]:
            self._remove(holding)
        for sequence in [free for free, left in self._left.items() if of_it(left.owner)]:
            del self._left[sequence]
            self._cells.forget(sequence)
        self._count()
        self._stash.disown(of_it)
        self.counts.stashed_bytes = self._stash.bytes

    def _save(self, holding: Holding) -> bool:
        """Whether it lies in the stash now."""
        if not self.shares or len(holding.tokens) < WORTH_COPYING:
            return False
        saved = self._stash.put(holding.owner, holding.tokens, lambda: self._cells.save(holding.sequence))
        self.counts.stashed_bytes = self._stash.bytes
        return saved

    def _resume(self, saved: Saved, length: int) -> int | None:
        """The free sequence in which what was saved still lies, shortened, without a copy. None where there is none."""
        sequence = next((free for free, left in self._left.items() if left.tokens is saved.tokens), None)
        if sequence is None:
            return None
        self._stash.touch(saved)
        self._free.remove(sequence)
        del self._left[sequence]
        self._count()
        if self._cells.shorten(sequence, length):
            return sequence
        insort(self._free, sequence)
        return None

    def _restore(self, sequence: int, saved: Saved, length: int) -> int:
        self._stash.touch(saved)
        while (held := self._cells.restore(sequence, saved.cells, length)) is None:
            if not self.evict():
                return 0
        return held

    def _donor(self, owner: Hashable, wanted: Tokens, running: Iterable[Holding]) -> tuple[int, int]:
        best, length = -1, 0
        for holding in (*running, *self._kept.values()):
            if holding.owner == owner and (common := common_prefix(wanted, holding.tokens)) > length:
                best, length = holding.sequence, common
        return best, length

    def _touch(self, sequence: int) -> None:
        self._kept[sequence] = self._kept.pop(sequence)

    def _remove(self, holding: Holding) -> None:
        del self._kept[holding.sequence]
        self.counts.kept_tokens -= self._own(holding)
        self._count()
        self.drop(holding.sequence)

    def _own(self, holding: Holding) -> int:
        """Tokens that it holds and no other kept sequence does."""
        shared = max((common_prefix(holding.tokens, other.tokens) for other in self._akin(holding)), default=0)
        return len(holding.tokens) - shared

    def _count(self) -> None:
        self.counts.kept_sequences = len(self._kept) + len(self._left)

    def _akin(self, holding: Holding) -> list[Holding]:
        return [other for other in self._kept.values() if other.owner == holding.owner]
