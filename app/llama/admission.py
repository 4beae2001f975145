"""Who may decode now, and who waits: slots, cache cells and a bounded queue. Pure bookkeeping, no locks.

A request reserves the cells of its whole prompt and its longest possible answers, so that none runs out half-way; what
finished requests left in the cache counts as free. Tenants take turns, and each tenant's requests come first, first
served. Whose turn it is is never overtaken, so that a large request cannot starve.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar

from app.errors import Overloaded


class Applicant(Protocol):
    """Something that wants slots and cache cells. admitted: whether it has them."""

    @property
    def slots(self) -> int: ...

    @property
    def cells(self) -> int: ...

    @property
    def tenant(self) -> str: ...

    admitted: bool


A = TypeVar("A", bound=Applicant)


class Admission(Generic[A]):
    """Slots and cells handed out to applicants of one kind. queue: how many may wait."""

    def __init__(self, *, slots: int, cells: int, queue: int) -> None:
        self.slots, self.cells, self.queue = slots, cells, queue
        self.free_slots, self.free_cells = slots, cells
        self._waiting: dict[str, deque[A]] = {}  # by tenant, in the order of their turns; never an empty one

    @property
    def waiting(self) -> list[A]:
        """Those that wait, a tenant's together."""
        return [applicant for line in self._waiting.values() for applicant in line]

    def knock(self, retry_after_s: float) -> None:
        """Raise Overloaded where nobody could enter now, whatever the size."""
        if self._waiting or not self.free_slots:
            self._need_place(retry_after_s)

    def enter(self, applicant: A, retry_after_s: float) -> None:
        """Admit, or give a place in the queue. Raises Overloaded, with the time to wait, where the queue is full."""
        assert applicant.cells <= self.cells, "no request may need more than the whole cache"
        assert applicant.slots <= self.slots, "no request may need more than all slots"
        if not self._waiting and self._fits(applicant):
            self._grant(applicant)
        else:
            self._need_place(retry_after_s)
            self._waiting.setdefault(applicant.tenant, deque()).append(applicant)

    def leave(self, applicant: A) -> list[A]:
        """Take back slots and cells, or the place in the queue. Returns those whose turn has come by that."""
        if applicant.admitted:
            self.free_slots += applicant.slots
            self.free_cells += applicant.cells
            applicant.admitted = False
        else:
            line = self._waiting[applicant.tenant]
            line.remove(applicant)
            if not line:
                del self._waiting[applicant.tenant]
        admitted = []
        while self._waiting and self._fits(next(iter(self._waiting.values()))[0]):
            admitted.append(self._call_next())
        return admitted

    def _call_next(self) -> A:
        tenant = next(iter(self._waiting))
        line = self._waiting.pop(tenant)
        applicant = line.popleft()
        if line:
            self._waiting[tenant] = line  # behind the others
        self._grant(applicant)
        return applicant

    def _need_place(self, retry_after_s: float) -> None:
        waiting = sum(map(len, self._waiting.values()))
        if waiting >= self.queue:
            raise Overloaded(waiting, self.queue, retry_after_s)

    def _fits(self, applicant: A) -> bool:
        return applicant.slots <= self.free_slots and applicant.cells <= self.free_cells

    def _grant(self, applicant: A) -> None:
        self.free_slots -= applicant.slots
        self.free_cells -= applicant.cells
        applicant.admitted = True
