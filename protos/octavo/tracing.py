"""Sets up OpenTelemetry for a process, and carries W3C trace context as plain strings."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = "traceparent"


def tracer_provider(
    *,
    service: str,
    instance: str,
    version: str,
    endpoint: str | None,
    sample_ratio: float = 1.0,
    exporter: SpanExporter | None = None,
) -> TracerProvider:
    """Return a tracer provider for one process; the caller owns it and shuts it down.

    Args:
        service: service.name, such as "octavo-router".
        instance: service.instance.id.
        version: service.version.
        endpoint: OTLP/gRPC endpoint, such as "http://jaeger:4317"; None exports nothing, ids still flow.
        sample_ratio: share of new traces that are recorded; a caller's decision is followed.
        exporter: replaces the OTLP exporter, for tests.
    """
    resource = Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance, SERVICE_VERSION: version})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample_ratio)))
    if exporter is None and endpoint:
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=16384, schedule_delay_millis=1000))
    return provider


def tracer(provider: TracerProvider) -> Tracer:
    """Return Octavo's tracer of a provider."""
    return provider.get_tracer("octavo")


def context_of(traceparent: str) -> Context:
    """Return the context that a traceparent names; the root context if it is empty or malformed."""
    return _PROPAGATOR.extract({_TRACEPARENT: traceparent}, context=Context()) if traceparent else Context()


def traceparent_of(span: trace.Span) -> str:
    """Return the traceparent of a span, for the next process."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def record_span(
    tracer: Tracer,
    name: str,
    *,
    parent: trace.Span,
    started_ns: int,
    seconds: float,
    attributes: Mapping[str, str | int],
) -> None:
    """Record what is over: a span that is made while a client waits costs it time.

    Args:
        tracer: makes the span.
        name: the span's.
        parent: span that it is a part of.
        started_ns: unix time, nanoseconds.
        seconds: how long it took.
        attributes: the span's.
    """
    context = trace.set_span_in_context(parent, Context())
    span = tracer.start_span(name, context=context, attributes=attributes, start_time=started_ns)
    span.end(end_time=started_ns + round(1e9 * seconds))


def trace_id_of(span: trace.Span) -> str:
    """Return the span's trace id as 32 hex digits, or an empty string if it has none."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
