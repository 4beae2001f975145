"""What is measured, as Prometheus metrics. Names and labels are part of the API: docs/operations.md.

Everything is counted twice: for this replica's own page, `GET /metrics`, which is all that one machine with one gateway
needs; and for Ray, which collects from every process of the cluster, adds the labels `deployment` and `replica`, and
names it `ray_mindfu_…`. Ray takes some 50 µs for each count, so it is told a little later (`Metrics.tell`), and of what
grew only the sum.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest
from ray.serve import metrics as exported

from app.turns import Turn
from deployments import logs, tracing

T = TypeVar("T")
TELL_S, AT_ONCE = 1.0, 8  # between two times that Ray is told; counts of one turn of the event loop: half a millisecond
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class _Counted(NamedTuple):
    """A counter with its labels' values."""

    page: prometheus_client.Counter
    untold: dict[tuple[str, ...], float]
    texts: tuple[str, ...]

    def inc(self, by: float = 1.0) -> None:
        """Let it grow."""
        self.page.inc(by)
        if by:  # Ray refuses to add nothing
            self.untold[self.texts] += by


class Counter:
    """A number that grows."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._page = prometheus_client.Counter(name, text, labels, registry=registry)
        self._exported, self._labels = exported.Counter(name, text, labels), labels
        self._untold = defaultdict[tuple[str, ...], float](float)

    def labels(self, *values: object) -> _Counted:
        """The counter of these labels, in the order of their names."""
        texts = tuple(str(value) for value in values)
        return _Counted(self._page.labels(*texts), self._untold, texts)

    def tell(self) -> Iterator[None]:
        """Tell Ray what it was not told yet, a count with each step."""
        while self._untold:
            texts, by = self._untold.popitem()
            self._exported.inc(by, dict(zip(self._labels, texts, strict=True)))
            yield


class Histogram:
    """Times, seconds, with one label."""

    def __init__(self, name: str, text: str, label: str, registry: CollectorRegistry) -> None:
        self._page = prometheus_client.Histogram(name, text, (label,), buckets=SECONDS, registry=registry)
        self._exported = exported.Histogram(name, text, boundaries=list(SECONDS), tag_keys=(label,))
        self._label = label
        self._untold = deque[tuple[str, float]]()

    def observe(self, value: str, seconds: float) -> None:
        """Count one. value: of the label."""
        self._page.labels(value).observe(seconds)
        self._untold.append((value, seconds))

    def tell(self) -> Iterator[None]:
        """Tell Ray what it was not told yet, a time with each step."""
        while self._untold:
            value, seconds = self._untold.popleft()
            self._exported.observe(seconds, {self._label: value})
            yield


class Metrics:
    """Of one gateway replica. log_texts: log lines of answers say what was asked and answered."""

    def __init__(self, *, log_texts: bool = False) -> None:
        self._log_texts = log_texts
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("mindfu_requests", "HTTP requests by route and status.", ("route", "status"), registry)
        self.stages = Histogram("mindfu_stage_seconds", "Time by stage of a request.", "stage", registry)
        self.turns = Counter("mindfu_turns", "Answers by how they ended.", ("model", "status"), registry)
        self.tokens = Counter("mindfu_tokens", "Tokens of finished answers.", ("model", "kind"), registry)
        self.first_token = Histogram("mindfu_first_token_seconds", "Until an answer's first token.", "model", registry)
        self.inter_token = Histogram(
            "mindfu_inter_token_seconds", "Mean time between the tokens of an answer.", "model", registry
        )
        self.shadows = Counter("mindfu_shadows", "Answers of adapters on trial that nobody saw.", ("status",), registry)
        self.gauges: dict[str, prometheus_client.Gauge] = {}

    async def tell(self) -> None:
        """Tell Ray what was counted since the last time, a few counts in each turn of the event loop."""
        metrics = (
            self.requests, self.stages, self.turns, self.tokens, self.first_token, self.inter_token, self.shadows
        )  # fmt: skip
        for metric in metrics:
            for number, _ in enumerate(metric.tell()):
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def tell_forever(self, every_s: float = TELL_S) -> None:
        """Until it is cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(every_s)
                await self.tell()
        finally:
            await self.tell()

    def stage(self, name: str, seconds: float) -> None:
        """Count the time of one stage of one request."""
        self.stages.observe(name, seconds)

    async def timed(self, name: str, work: Awaitable[T]) -> T:
        """Await the work, and count and trace its time as that stage, also when it fails."""
        started = time.perf_counter()
        with tracing.span(name):
            try:
                return await work
            finally:
                self.stage(name, time.perf_counter() - started)

    def answered(self, turn: Turn) -> None:
        """Count, log and trace one answer."""
        self.turns.labels(turn.model, turn.status).inc()
        if turn.first_token_s is not None:
            self.first_token.observe(turn.model, turn.first_token_s)
        if turn.timings:
            self.stage("queue", turn.timings.queued_s)
            self.stage("prefill", turn.timings.prefill_s)
            self.stage("decode", turn.timings.decode_s)
        if turn.usage:
            for kind in ("prompt", "completion", "cached"):
                self.tokens.labels(turn.model, kind).inc(getattr(turn.usage, f"{kind}_tokens"))
            if turn.timings and turn.usage.completion_tokens > 1:
                self.inter_token.observe(turn.model, turn.timings.decode_s / (turn.usage.completion_tokens - 1))
        logs.answered(turn, texts=self._log_texts)
        tracing.answered(turn)

    def page(self, readings: Mapping[str, float], adapters: Iterable[tuple[str, str]] = ()) -> bytes:
        """The Prometheus page, with other parts' readings of this moment, and no older ones, as mindfu_<name>.

        adapters: model and version, of every engine of the cluster that holds one.
        """
        for name in self.gauges.keys() - readings.keys():
            self.registry.unregister(self.gauges.pop(name))
        for name, value in readings.items():
            if name not in self.gauges:
                text = f"{name}, as it is now."
                self.gauges[name] = prometheus_client.Gauge(f"mindfu_{name}", text, registry=self.registry)
            self.gauges[name].set(value)
        held = CollectorRegistry()
        replicas = prometheus_client.Gauge(
            "mindfu_adapter_replicas", "Engines that hold an adapter.", ("model", "adapter"), registry=held
        )
        for model, adapter in adapters:
            replicas.labels(model, adapter).inc()
        return generate_latest(self.registry) + generate_latest(held)


class Published:
    """Readings of one replica for Ray, as mindfu_<part>_<name>. What is no longer read becomes 0."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._gauges: dict[str, Any] = {}
        self._adapter: Any = None
        self._adapters: set[tuple[str, str]] = set()

    def readings(self, readings: Mapping[str, float]) -> None:
        """Set the gauges."""
        for name in self._gauges.keys() | readings.keys():
            if name not in self._gauges:
                self._gauges[name] = exported.Gauge(f"mindfu_{self._part}_{name}", f"{name}, as it is now.")
            self._gauges[name].set(readings.get(name, 0.0))

    def adapters(self, held: Iterable[tuple[str, str]]) -> None:
        """Say which adapters are loaded here: 1, and 0 once they are not."""
        loaded, labels = set(held), ("model", "adapter")
        if loaded and self._adapter is None:
            self._adapter = exported.Gauge(f"mindfu_{self._part}_adapter", "Whether it is loaded.", labels)
        self._adapters |= loaded
        for one in self._adapters:
            self._adapter.set(float(one in loaded), dict(zip(labels, one, strict=True)))
