"""What a replica publishes through Ray: a health check takes part in it, so it must not fail whatever changes."""

from deployments import metrics
from deployments.metrics import Published


def test_readings_and_adapters_come_and_go(monkeypatch):
    """A gauge of adapters has labels, and no reading is set on it; what is gone becomes 0."""
    told: dict[tuple[str, ...], float] = {}

    class Gauge(metrics.exported.Gauge):
        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            super().set(value, tags)
            told[self.info["name"], *(tags or {}).values()] = value

    monkeypatch.setattr(metrics.exported, "Gauge", Gauge)
    published = Published("engine")
    for readings, adapters in (({"a": 1.0}, []), ({"a": 2.0}, [("m", "v1")]), ({"b": 3.0}, [("m", "v2")]), ({}, [])):
        published.readings(readings)
        published.adapters(adapters)
        assert {key[1:] for key, value in told.items() if len(key) > 1 and value} == set(adapters)
    assert set(told) == {
        ("mindfu_engine_a",),
        ("mindfu_engine_b",),
        ("mindfu_engine_adapter", "m", "v1"),
        ("mindfu_engine_adapter", "m", "v2"),
    }
    assert not any(told.values())
