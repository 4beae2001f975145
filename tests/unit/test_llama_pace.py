"""The time of a step by its rows."""

import pytest

from app.llama.pace import FEWEST_ROWS, Pace


def taught(most: int = 512, **seconds: float) -> Pace:
    """A machine that was seen to take so long: rows as r16=0.1."""
    pace = Pace(most)
    for rows, took in seconds.items():
        pace.observe(int(rows[1:]), took)
    return pace


def test_between_what_was_seen_time_is_interpolated():
    """1 row in 10 ms and 128 in 140 ms: 64 in about half."""
    assert taught(r1=0.010, r128=0.140).seconds(64) == pytest.approx(0.0745, abs=0.001)


def test_the_largest_step_in_time_is_found():
    """100 ms are 87 rows of that machine, and more than all rows are never proposed."""
    pace = taught(most=512, r1=0.010, r128=0.140)
    assert 80 <= pace.rows_within(0.100) <= 95
    assert pace.rows_within(60.0) == 512


def test_what_was_not_seen_is_not_trusted():
    """After one row in 10 ms, 200 ms are taken to be 20 rows: a budget grows from step to step, never by a leap."""
    assert taught(r1=0.010).rows_within(0.200) == 20
    assert Pace(512).rows_within(0.200) == FEWEST_ROWS


def test_a_slow_machine_still_gets_on():
    """No budget is below a few rows."""
    assert taught(r1=5.0, r16=9.0).rows_within(0.1) == FEWEST_ROWS


def test_an_old_load_is_forgotten():
    """After twenty quick steps, the slow ones before count for little."""
    pace = taught(r1=1.0)
    for _ in range(20):
        pace.observe(1, 0.01)
    assert pace.seconds(1) < 0.03


def test_one_slow_step_moves_nothing():
    """Whatever held the machine up for a second, the next budget is as before."""
    pace = taught(r16=0.1)
    for seconds in (0.1, 0.1, 2.0):
        pace.observe(16, seconds)
    assert pace.seconds(16) == 0.1


def test_time_never_falls_with_rows():
    """A quick large step does not make small ones look dear in comparison."""
    pace = taught(r4=0.020, r8=0.010)
    assert pace.seconds(8) >= pace.seconds(4)
