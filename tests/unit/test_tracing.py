"""The spans of a request's stages, and where they go. That they are one trace across replicas is an acceptance test."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from ray.serve._private.tracing_utils import _validate_tracing_exporter, _validate_tracing_exporter_processors

from app.messages import Delta, Done, End, Timings, Usage
from deployments import tracing
from tests.server import Server

DONE = Done(
    (End("stop"),),
    Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=4),
    Timings(queued_s=0.5, prefill_s=0.25, decode_s=1.0),
)
SECRET = "Zanzibar"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What was traced."""
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("mindfu"))
    yield kept
    provider.shutdown()


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


async def ask(*items: Delta | Done | Exception) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": SECRET}], "rag": False}
    await Server(*items).post(**body)


async def test_the_stages_of_an_answer_are_beneath_the_request(spans: InMemorySpanExporter):
    """Queue, prefill and decode one after another, with the engine's own times, and what the conventions ask for."""
    with tracing.span("request"):
        await ask(Delta(f"{SECRET}!", 3), DONE)
    found = named(spans)
    chat = found["chat m"]
    assert {span.context.trace_id for span in found.values()} == {found["request"].context.trace_id}
    assert all(found[name].parent.span_id == chat.context.span_id for name in ("queue", "prefill", "decode"))
    took = [(found[name].end_time - found[name].start_time) / 1e9 for name in ("queue", "prefill", "decode")]
    assert took == [0.5, 0.25, 1.0]
    assert found["queue"].end_time == found["prefill"].start_time
    assert found["prefill"].end_time == found["decode"].start_time
    numbers = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 3, "gen_ai.usage.cached_tokens": 4}
    assert chat.attributes.items() >= (numbers | {"gen_ai.request.model": "m", "mindfu.status": "complete"}).items()


async def test_no_span_holds_what_anybody_wrote(spans: InMemorySpanExporter):
    """Neither of a question, nor of an answer, nor of an error."""
    with tracing.span("request"):
        await ask(Delta(f"{SECRET}!", 3), DONE)
    with pytest.raises(ValueError), tracing.span("broken"):  # noqa: PT011
        raise ValueError(SECRET)
    assert SECRET not in "".join(span.to_json() for span in spans.get_finished_spans())
    broken = named(spans)["broken"].status
    assert (broken.status_code, broken.description) == (StatusCode.ERROR, "ValueError")


async def test_what_is_not_traced_makes_no_spans_of_its_own(spans: InMemorySpanExporter):
    """An answer of a request that nobody traces has no stages."""
    await ask(Delta("!", 3), DONE)
    assert "chat m" not in named(spans)


def test_spans_go_out_by_otlp(monkeypatch: pytest.MonkeyPatch):
    """To the endpoint of the environment, from what Serve takes for exporters."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    _validate_tracing_exporter(tracing.exporters)
    with HTTPServer(("127.0.0.1", 0), Receiver) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{http.server_port}")
        processors = tracing.exporters()
        _validate_tracing_exporter_processors(processors)
        provider = TracerProvider()
        for processor in processors:
            provider.add_span_processor(processor)
        provider.get_tracer("mindfu").start_span("one").end()
        provider.shutdown()
        http.shutdown()
        thread.join()
    (request,) = map(ExportTraceServiceRequest.FromString, bodies)
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "one"
