"""Whose turn it is among the adapters: a batch holds sequences of one, and none may starve. Pure."""

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A rotation. round_s: in which all who want a turn have had one, where steps are shorter than turns."""

    def __init__(self, round_s: float) -> None:
        self._round_s = round_s
        self._order: list[T] = []
        self._since = 0.0

    def next(self, wanting: Sequence[T], now: float) -> T:
        """Who may go now. wanting: at least one, each once; newcomers queue behind those who wait already.

        A turn lasts a share of the round, and at least one step; so the wait is at most one turn of each other.
        """
        holder = self._order[0] if self._order else None
        self._order = [one for one in self._order if one in wanting]
        self._order += [one for one in wanting if one not in self._order]
        if self._order[0] is not holder:
            self._since = now
        elif len(self._order) > 1 and now - self._since >= self.turn_s(len(self._order)):
            self._order.append(self._order.pop(0))
            self._since = now
        return self._order[0]

    def turn_s(self, wanting: int) -> float:
        """How long a turn lasts where so many want one."""
        return self._round_s / max(1, wanting)
