"""Slots, cells and the queue."""

from dataclasses import dataclass

import pytest

from app.errors import Overloaded
from app.llama.admission import Admission


@dataclass(eq=False)
class Request:
    """Wants this many cells."""

    cells: int
    slots: int = 1
    tenant: str = "a"
    admitted: bool = False


def entered(admission: Admission[Request], *cells: int, slots: int = 1, tenant: str = "a") -> list[Request]:
    requests = [Request(wanted, slots, tenant) for wanted in cells]
    for request in requests:
        admission.enter(request, 1.0)
    return requests


def test_requests_are_admitted_until_no_slot_is_left():
    """The next one waits."""
    admission = Admission[Request](slots=2, cells=100, queue=5)
    first, second, third = entered(admission, 10, 10, 10)
    assert (first.admitted, second.admitted, third.admitted) == (True, True, False)
    assert list(admission.waiting) == [third]


def test_several_answers_need_as_many_slots():
    """Three of four are free after the first: enough for three answers, and then not for two."""
    admission = Admission[Request](slots=4, cells=100, queue=5)
    entered(admission, 10)
    (three,) = entered(admission, 10, slots=3)
    (two,) = entered(admission, 10, slots=2)
    assert (three.admitted, two.admitted, admission.free_slots) == (True, False, 0)
    assert admission.leave(three) == [two]


def test_a_request_waits_for_cells_as_for_a_slot():
    """A cache that is smaller than slots × window never runs out in the middle of an answer."""
    admission = Admission[Request](slots=8, cells=100, queue=5)
    large, second = entered(admission, 80, 30)
    assert not second.admitted
    assert admission.leave(large) == [second]
    assert admission.free_cells == 70


def test_a_large_request_at_the_head_is_not_overtaken():
    """A small one would fit now; it waits behind, so that the large one's turn comes."""
    admission = Admission[Request](slots=8, cells=100, queue=5)
    first, large, small = entered(admission, 50, 80, 10)
    assert (large.admitted, small.admitted) == (False, False)
    assert admission.leave(first) == [large, small]


def test_tenants_take_turns():
    """One with many requests in the queue does not keep the others waiting behind all of them."""
    admission = Admission[Request](slots=1, cells=100, queue=9)
    (running,) = entered(admission, 1, tenant="b")
    first, second, third = entered(admission, 1, 1, 1, tenant="busy")
    (other,) = entered(admission, 1, tenant="quiet")
    order = []
    while admission.free_slots == 0:
        admitted = admission.leave(running)
        order += admitted
        running = admitted[0] if admitted else running
    assert order == [first, other, second, third]


def test_a_full_queue_refuses_with_the_time_to_wait():
    """The error says how many wait, how many may, and when to come again."""
    admission = Admission[Request](slots=1, cells=100, queue=1)
    entered(admission, 10, 10)
    with pytest.raises(Overloaded) as caught:
        admission.enter(Request(10), retry_after_s=7.0)
    assert (caught.value.waiting, caught.value.limit, caught.value.retry_after_s) == (1, 1, 7.0)


def test_a_knock_is_answered_like_an_entry():
    """Nobody prepares a request for a queue that is full; with room left anybody may try."""
    admission = Admission[Request](slots=1, cells=100, queue=1)
    for cells in (10, 10):
        admission.knock(1.0)
        entered(admission, cells)
    with pytest.raises(Overloaded):
        admission.knock(1.0)


def test_without_a_queue_a_free_slot_still_serves():
    """queue=0 means that nobody waits, not that nobody is served."""
    admission = Admission[Request](slots=1, cells=100, queue=0)
    (request,) = entered(admission, 10)
    assert request.admitted


def test_who_stops_waiting_lets_the_others_move_up():
    """The head of the queue leaves, and the one behind it fits already."""
    admission = Admission[Request](slots=2, cells=100, queue=5)
    _, large, small = entered(admission, 50, 80, 10)
    assert admission.leave(large) == [small]


def test_all_comes_back():
    """When everybody has left, slots and cells are as at the beginning."""
    admission = Admission[Request](slots=2, cells=100, queue=5)
    for request in entered(admission, 50, 50, 50, 10):
        admission.leave(request)
    assert (admission.free_slots, admission.free_cells, len(admission.waiting)) == (2, 100, 0)
