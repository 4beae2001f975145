"""Who may decode now, and who waits: slots, cache cells and a bounded queue. Pure bookkeeping, no locks.

A request reserves the cells of its whole prompt and its longest possible answer, so that none runs out half-way.
First come, first served: a large request at the head is never overtaken, so it cannot starve.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar

from app.errors import Overloaded


class Applicant(Protocol):
    """Something that wants a slot. cells: how many cache cells it reserves; slot: -1 until it has one."""

    @property
    def cells(self) -> int: ...

    slot: int


A = TypeVar("A", bound=Applicant)


class Admission(Generic[A]):
    """Slots and cells handed out to applicants of one kind. queue: how many may wait."""

    def __init__(self, *, slots: int, cells: int, queue: int) -> None:
        self.slots, self.cells, self.queue = slots, cells, queue
        self.free_slots = list(range(slots))
        self.free_cells = cells
        self.waiting: deque[A] = deque()

    def knock(self, retry_after_s: float) -> None:
        """Raise Overloaded where nobody could enter now, whatever the size."""
        if self.waiting or not self.free_slots:
            self._need_place(retry_after_s)

    def enter(self, applicant: A, retry_after_s: float) -> None:
        """Give a slot, or a place in the queue. Raises Overloaded, with the time to wait, where the queue is full."""
        assert applicant.cells <= self.cells, "no request may need more than the whole cache"
        if not self.waiting and self._fits(applicant):
            self._grant(applicant)
        else:
            self._need_place(retry_after_s)
            self.waiting.append(applicant)

    def leave(self, applicant: A) -> list[A]:
        """Take back slot and cells, or the place in the queue. Returns those whose turn has come by that."""
        if applicant.slot < 0:
            self.waiting.remove(applicant)
        else:
            self.free_slots.append(applicant.slot)
            self.free_cells += applicant.cells
            applicant.slot = -1
        admitted = []
        while self.waiting and self._fits(self.waiting[0]):
            admitted.append(self.waiting.popleft())
            self._grant(admitted[-1])
        return admitted

    def _need_place(self, retry_after_s: float) -> None:
        if len(self.waiting) >= self.queue:
            raise Overloaded(len(self.waiting), self.queue, retry_after_s)

    def _fits(self, applicant: A) -> bool:
        return bool(self.free_slots) and applicant.cells <= self.free_cells

    def _grant(self, applicant: A) -> None:
        applicant.slot = self.free_slots.pop()
        self.free_cells -= applicant.cells
