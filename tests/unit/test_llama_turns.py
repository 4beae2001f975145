"""Turns among adapters."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.llama.turns import Turns


def test_alone_there_is_no_waiting():
    """Nobody else wants a turn, so it never ends."""
    turns = Turns[str](round_s=1.0)
    assert [turns.next(["a"], now) for now in (0.0, 5.0, 50.0)] == ["a"] * 3


def test_a_turn_lasts_its_share_of_the_round():
    """Two share 1 s: half a second each."""
    turns = Turns[str](round_s=1.0)
    order = [turns.next(["a", "b"], step / 10) for step in range(20)]
    assert order == ["a"] * 5 + ["b"] * 5 + ["a"] * 5 + ["b"] * 5


def test_long_steps_alternate():
    """A turn is at least one step, however short the round."""
    turns = Turns[str](round_s=0.1)
    assert [turns.next(["a", "b", "c"], float(now)) for now in range(6)] == ["a", "b", "c"] * 2


def test_who_has_nothing_to_do_gives_the_turn_away():
    """The next one has a whole turn."""
    turns = Turns[str](round_s=1.0)
    turns.next(["a", "b"], 0.0)
    assert [turns.next(["b", "c"], now) for now in (0.1, 0.5, 0.61)] == ["b", "b", "c"]


@settings(max_examples=40)
@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=30, max_size=60))
def test_nobody_waits_for_more_than_one_turn_of_each_other(wanting: list[set[str]]):
    """Whoever wants a turn in six steps of a turn each, however the others come and go, has one."""
    turns = Turns[str](round_s=1.0)
    had = [turns.next(sorted(wants), float(now)) for now, wants in enumerate(wanting)]
    for start in range(len(had) - 6):
        patient = set.intersection(*wanting[start : start + 6])
        assert patient <= set(had[start : start + 6])
