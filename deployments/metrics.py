"""What the gateway measures, as Prometheus metrics. Names and labels are part of the API."""

import time
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.messages import Usage

T = TypeVar("T")
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """One registry per gateway replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mindfu_requests", "HTTP requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.stages = Histogram(
            "mindfu_stage_seconds", "Time by stage of a request.", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.turns = Counter("mindfu_turns", "Answers by how they ended.", ["status"], registry=self.registry)
        self.tokens = Counter("mindfu_tokens", "Tokens of finished answers.", ["kind"], registry=self.registry)
        self.shadows = Counter(
            "mindfu_shadows", "Answers of adapters on trial that nobody saw.", ["status"], registry=self.registry
        )
        self.gauges: dict[str, Gauge] = {}

    def stage(self, name: str, seconds: float) -> None:
        """Count the time of one stage of one request."""
        self.stages.labels(name).observe(seconds)

    async def timed(self, name: str, work: Awaitable[T]) -> T:
        """Await the work and count its time as that stage, also when it fails."""
        started = time.perf_counter()
        try:
            return await work
        finally:
            self.stage(name, time.perf_counter() - started)

    def answered(self, status: str, usage: Usage | None) -> None:
        """Count one answer and its tokens."""
        self.turns.labels(status).inc()
        if usage:
            self.tokens.labels("prompt").inc(usage.prompt_tokens)
            self.tokens.labels("completion").inc(usage.completion_tokens)
            self.tokens.labels("cached").inc(usage.cached_tokens)

    def page(self, readings: Mapping[str, float]) -> bytes:
        """The Prometheus page, with other parts' readings of this moment, and no older ones, as mindfu_<name>."""
        for name in self.gauges.keys() - readings.keys():
            self.registry.unregister(self.gauges.pop(name))
        for name, value in readings.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"mindfu_{name}", f"{name}, as it is now.", registry=self.registry)
            self.gauges[name].set(value)
        return generate_latest(self.registry)
