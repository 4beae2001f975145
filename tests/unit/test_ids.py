"""Ids."""

from app.ids import new_id


def test_later_ids_are_greater():
    """Also of the same millisecond: lists are sorted by them, and paged."""
    made = []
    for _ in range(2000):
        made.append(new_id("x-"))
        while new_id("x-")[:18] == made[-1][:18]:  # the clock's next tick
            pass
    assert made == sorted(made)
    assert len(set(made)) == 2000
    assert {len(one) for one in made} == {2 + 28}
