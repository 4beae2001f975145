"""OpenTelemetry traces. Serve makes the spans of the proxy, of replicas and of calls between them, and hands the
context on; here are those of a request's stages, and where all of them go.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 mindfu serve

Without that variable nothing is made and nothing is sent. No span holds what anybody wrote.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import StatusCode
from opentelemetry.util.types import AnyValue

from app.turns import Turn

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORTERS = "deployments.tracing:exporters"
NS = 10**9

tracer = trace.get_tracer("mindfu")


def exporters() -> "list[SpanProcessor]":
    """What Serve gives the spans of each process to: OTLP over HTTP, by OpenTelemetry's own variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # half a second
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]


@contextmanager
def span(name: str) -> Iterator[None]:
    """The time of the block. What it calls is beneath it; of an error only the class is told."""
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as started:
        try:
            yield
        except BaseException as error:
            started.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def answered(turn: Turn) -> None:
    """Where an answer's time went in the engine, after the semantic conventions of generative AI."""
    if turn.timings is None or turn.usage is None or not _sampled():
        return
    ended = int((turn.created_at + timedelta(seconds=turn.latency_s)).timestamp() * NS)
    about: dict[str, AnyValue] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": turn.model,
        "gen_ai.response.id": turn.request_id,
        "gen_ai.response.finish_reasons": [turn.finish_reason or ""],
        "gen_ai.usage.input_tokens": turn.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": turn.usage.completion_tokens,
        "gen_ai.usage.cached_tokens": turn.usage.cached_tokens,
        "mindfu.adapter": turn.adapter or "",
        "mindfu.sources": len(turn.sources),
        "mindfu.status": turn.status,
    }
    stages = (("queue", turn.timings.queued_s), ("prefill", turn.timings.prefill_s), ("decode", turn.timings.decode_s))
    began = ended - int(sum(seconds for _, seconds in stages) * NS)
    whole = tracer.start_span(f"chat {turn.model}", start_time=began, attributes=about)
    for name, seconds in stages:
        until = began + int(seconds * NS)
        tracer.start_span(name, trace.set_span_in_context(whole), start_time=began).end(until)
        began = until
    whole.end(ended)


def _sampled() -> bool:
    return trace.get_current_span().get_span_context().trace_flags.sampled
