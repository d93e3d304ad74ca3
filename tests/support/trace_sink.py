"""A real OTLP/gRPC trace service that keeps what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class TraceSink(trace_service_pb2_grpc.TraceServiceServicer):
    """Spans by name, and the resource of the process that sent the last ones."""

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[trace_pb2.Span] = []
        self.resource: dict[str, str] = {}
        self._told = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        async with self._told:
            for group in request.resource_spans:
                self.resource = {entry.key: entry.value.string_value for entry in group.resource.attributes}
                for scope in group.scope_spans:
                    self.spans.extend(scope.spans)
            self._told.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[trace_pb2.Span]:
        return [span for span in self.spans if span.name == name]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(30), self._told:
            await self._told.wait_for(holds)  # type: ignore[arg-type]


def attributes_of(span: trace_pb2.Span | trace_pb2.Span.Event) -> dict[str, Any]:
    """Return a span's or an event's attributes as plain values."""
    plain: dict[str, Any] = {}
    for entry in span.attributes:
        kind = entry.value.WhichOneof("value")
        value = getattr(entry.value, kind)
        plain[entry.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return plain


@asynccontextmanager
async def trace_sink() -> AsyncIterator[TraceSink]:
    """A sink that listens at `address`."""
    sink = TraceSink()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    sink.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield sink
    finally:
        await server.stop(None)
