"""The Prometheus page."""

from deployments.metrics import Metrics


def test_a_part_that_went_away_leaves_no_old_reading():
    """A gauge is there for as long as somebody reads it out; counters stay."""
    metrics = Metrics()
    metrics.answered("complete", None)
    assert b"mindfu_engine_running 3.0" in metrics.page({"engine_running": 3, "engine_up": 1})
    away = metrics.page({"engine_up": 0})
    assert b"mindfu_engine_up 0.0" in away
    assert b"mindfu_turns_total" in away
    assert b"mindfu_engine_running" not in away
    assert b"mindfu_engine_running 4.0" in metrics.page({"engine_running": 4, "engine_up": 1})
