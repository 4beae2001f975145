"""The Prometheus page, and the log line of an answer."""

import asyncio
import json
import logging
from datetime import UTC, datetime

import pytest
from ray._common.formatters import JSONFormatter

from app.messages import Message, Passage, Timings, Usage
from app.turns import Turn
from deployments.logs import join_serve
from deployments.metrics import Metrics

TURN = Turn(
    request_id="req_1",
    tenant="acme",
    messages=(Message(role="user", content="the question"),),
    answer=Message(role="assistant", content="the answer"),
    model="m",
    adapter="v2",
    sources=(Passage(document_id="d", collection="c", title="t", chunk=0, text="a source", score=1, start=0, end=1),),
    usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4),
    timings=Timings(queued_s=0.5, prefill_s=0.2, decode_s=0.4),
    first_token_s=0.75,
    latency_s=1.25,
    finish_reason="stop",
    status="complete",
    extras={"x_request_id": "mine", "key_id": "k"},
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)  # fmt: skip


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_part_that_went_away_leaves_no_old_reading():
    """A gauge is there for as long as somebody reads it out; counters stay."""
    metrics = Metrics()
    metrics.answered(TURN)
    assert b"mindfu_engine_running 3.0" in metrics.page({"engine_running": 3, "engine_up": 1})
    away = metrics.page({"engine_up": 0})
    assert b"mindfu_engine_up 0.0" in away
    assert b"mindfu_turns_total" in away
    assert b"mindfu_engine_running" not in away
    assert b"mindfu_engine_running 4.0" in metrics.page({"engine_running": 4, "engine_up": 1})


def test_an_answer_tells_its_tokens_and_where_its_time_went():
    """By model: tokens and those from the cache, time to the first, between two, and of each stage."""
    metrics = Metrics()
    metrics.answered(TURN)
    assert sample(metrics, "mindfu_turns_total", model="m", status="complete") == 1
    kinds = ("prompt", "completion", "cached")
    assert [sample(metrics, "mindfu_tokens_total", model="m", kind=kind) for kind in kinds] == [10, 5, 4]
    assert sample(metrics, "mindfu_first_token_seconds_sum", model="m") == 0.75
    assert sample(metrics, "mindfu_inter_token_seconds_sum", model="m") == pytest.approx(0.4 / 4)
    stages = ("queue", "prefill", "decode")
    assert [sample(metrics, "mindfu_stage_seconds_sum", stage=stage) for stage in stages] == [0.5, 0.2, 0.4]


def test_an_answer_that_failed_is_counted_all_the_same():
    """Without what nobody knows of it."""
    metrics = Metrics()
    nothing = {"usage": None, "timings": None, "first_token_s": None, "status": "failed", "finish_reason": None}
    metrics.answered(TURN.model_copy(update=nothing))
    assert sample(metrics, "mindfu_turns_total", model="m", status="failed") == 1
    assert sample(metrics, "mindfu_first_token_seconds_count", model="m") is None


def test_adapters_are_counted_over_all_engines_and_forgotten_with_them():
    """Two replicas hold v1, one v2; a moment later one of all."""
    metrics = Metrics()
    page = metrics.page({}, [("m", "v1"), ("m", "v2"), ("m", "v1")]).decode()
    assert 'mindfu_adapter_replicas{adapter="v1",model="m"} 2.0' in page
    assert 'mindfu_adapter_replicas{adapter="v2",model="m"} 1.0' in page
    assert "v2" not in metrics.page({}, [("m", "v1")]).decode()


@pytest.mark.parametrize("texts", [False, True])
def test_the_log_tells_who_and_how_long_and_what_was_said_only_when_asked(
    texts: bool, caplog: pytest.LogCaptureFixture
):
    """One line as JSON, with every id that an answer is known by."""
    with caplog.at_level(logging.INFO, "deployments.logs"):
        Metrics(log_texts=texts).answered(TURN)
    (record,) = caplog.records
    line = JSONFormatter().format(record)
    told = json.loads(line)
    ids = {"answer_id": "req_1", "x_request_id": "mine", "tenant": "acme", "key_id": "k", "adapter": "v2", "sources": 1}
    assert told.items() >= (ids | {"status": "complete", "prompt_tokens": 10, "latency_s": 1.25}).items()
    assert [text in line for text in ("the question", "the answer")] == [texts, texts]
    assert "a source" not in line
    assert record.getMessage() == "req_1 complete by m: 10 + 5 tokens, 1.25 s"


def test_our_lines_go_where_serves_go():
    """To its handlers, and not twice; where it has none, nothing changes."""
    serve, ours = logging.getLogger("ray.serve"), logging.getLogger("app")
    before = serve.handlers, ours.handlers, ours.propagate, ours.level
    handler = logging.NullHandler()
    try:
        serve.handlers = []
        join_serve()
        assert ours.handlers == before[1]
        serve.handlers = [handler]
        join_serve()
        assert (ours.handlers, ours.propagate) == ([handler], False)
    finally:
        for name in ("app", "deployments", "train"):
            logger = logging.getLogger(name)
            serve.handlers, logger.handlers, logger.propagate = before[0], before[1], before[2]
            logger.setLevel(before[3])


async def test_ray_is_told_later_and_of_what_grew_only_the_sum():
    """Nothing while an answer is counted; then everything, once."""
    metrics, told = Metrics(), list[tuple[object, ...]]()

    class Ray:
        def inc(self, by: float, tags: dict[str, str]) -> None:
            told.append((by, tags))

        def observe(self, seconds: float, tags: dict[str, str]) -> None:
            told.append((seconds, tags))

    for metric in (metrics.turns, metrics.tokens, metrics.first_token, metrics.inter_token, metrics.stages):
        metric._exported = Ray()
    for _ in range(3):
        metrics.answered(TURN)
    assert told == []
    await metrics.tell()
    assert (3.0, {"model": "m", "status": "complete"}) in told
    assert (30.0, {"model": "m", "kind": "prompt"}) in told
    assert told.count((0.75, {"model": "m"})) == 3
    seen = len(told)
    await metrics.tell()
    assert len(told) == seen


async def test_what_was_counted_last_is_told_at_the_end():
    """A replica that ends tells what it counted since it last told something."""
    metrics = Metrics()
    metrics.turns.labels("m", "complete").inc()
    telling = asyncio.create_task(metrics.tell_forever(60.0))
    await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    assert list(metrics.turns.tell()) == []
