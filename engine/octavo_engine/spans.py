"""Builds a request's spans when it has ended, from times that were recorded anyway: the step loop pays nothing.

engine.generate      arrival .. last end            child of the router's span
├── engine.queue     arrival .. first step
├── engine.prefill   first step .. first token      one event per chunk
└── engine.decode    first token .. last token      preemptions as events
"""

from __future__ import annotations

from typing import Final

from octavo import attributes
from octavo.attributes import Attribute, Event
from octavo.tracing import context_of
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from octavo_engine.clock import Clock
from octavo_engine.live_request import LiveRequest
from octavo_engine.sequence import FinishReason

_FAILURES: Final = (FinishReason.ERROR, FinishReason.DEADLINE)


class SpanRecorder:
    """Writes the spans of ended requests.

    Args:
        tracer: where spans go.
        clock: maps recorded times to unix time.
        engine_id: this engine.
        epoch: its epoch.
    """

    def __init__(self, tracer: Tracer, clock: Clock, *, engine_id: str, epoch: int) -> None:
        self.model = ""
        self._tracer = tracer
        self._clock = clock
        self._engine_id = engine_id
        self._epoch = epoch

    def take_finished(self, request: LiveRequest, ended_ns: int) -> None:
        """Write the spans of a request that ended at this monotonic time."""
        root = self._tracer.start_span(
            attributes.Span.ENGINE_GENERATE,
            context=context_of(request.traceparent),
            kind=SpanKind.SERVER,
            start_time=self._clock.unix_ns(request.command.arrival_ns),
        )
        if root.is_recording():
            self._describe(root, request)
            self._write_stages(root, request, ended_ns)
        root.end(self._clock.unix_ns(ended_ns))

    def _describe(self, root: Span, request: LiveRequest) -> None:
        command = request.command
        timing = request.timing()
        root.set_attributes(
            {
                Attribute.OPERATION: "generate",
                Attribute.PROVIDER: "octavo",
                Attribute.MODEL: self.model,
                Attribute.MAX_TOKENS: command.max_tokens,
                Attribute.TEMPERATURE: command.temperature,
                Attribute.TOP_P: command.top_p,
                Attribute.TOP_K: command.top_k,
                Attribute.SEED: str(command.seed),  # a 64-bit unsigned number does not fit an attribute
                Attribute.FINISH_REASONS: [FinishReason(end.reason).name.lower() for end in request.ends],
                Attribute.REQUEST_ID: request.request_id,
                Attribute.ENGINE_ID: self._engine_id,
                Attribute.ENGINE_EPOCH: str(self._epoch),
                Attribute.ATTEMPT: request.attempt,
                Attribute.TTFT_S: (timing.queue_ns + timing.prefill_ns) / 1e9,
            }
        )
        failed = next((end for end in request.ends if end.reason in _FAILURES), None)
        if failed is not None:
            root.set_status(Status(StatusCode.ERROR, failed.error or FinishReason(failed.reason).name.lower()))

    def _write_stages(self, root: Span, request: LiveRequest, ended_ns: int) -> None:
        parent = set_span_in_context(root)
        unix_ns = self._clock.unix_ns
        planned_ns = request.first_planned_ns
        first_token_ns = request.first_token_ns
        queue = self._tracer.start_span(
            attributes.Span.ENGINE_QUEUE, context=parent, start_time=unix_ns(request.command.arrival_ns)
        )
        queue.end(unix_ns(planned_ns if planned_ns is not None else ended_ns))
        if planned_ns is not None:
            prefill_end_ns = first_token_ns if first_token_ns is not None else ended_ns
            self._write_prefill(parent, request, unix_ns(planned_ns), unix_ns(prefill_end_ns))
        if first_token_ns is not None:
            root.add_event(Event.FIRST_TOKEN, timestamp=unix_ns(first_token_ns))
            self._write_decode(parent, request)

    def _write_prefill(self, parent: Context, request: LiveRequest, start_ns: int, end_ns: int) -> None:
        prefill = self._tracer.start_span(
            attributes.Span.ENGINE_PREFILL,
            context=parent,
            start_time=start_ns,
            attributes={
                Attribute.PREFILL_STEPS: request.timing().num_prefill_steps,
                Attribute.PREFILL_TOKENS: request.num_prefill_tokens,
                Attribute.CACHED_TOKENS: request.cached_tokens,
            },
        )
        for at_ns, start, num_tokens in request.chunks:
            prefill.add_event(
                Event.PREFILL_CHUNK,
                {"octavo.chunk.start": start, "octavo.chunk.num_tokens": num_tokens},
                timestamp=self._clock.unix_ns(at_ns),
            )
        prefill.end(end_ns)

    def _write_decode(self, parent: Context, request: LiveRequest) -> None:
        timing = request.timing()
        assert request.first_token_ns is not None  # noqa: S101 - the caller looked
        start_ns = self._clock.unix_ns(request.first_token_ns)
        decode = self._tracer.start_span(
            attributes.Span.ENGINE_DECODE,
            context=parent,
            start_time=start_ns,
            attributes={
                Attribute.DECODE_STEPS: request.num_decode_steps,
                Attribute.PEAK_PAGES: timing.peak_pages,
                Attribute.PREEMPTIONS: timing.num_preemptions,
                Attribute.RECOMPUTED_TOKENS: timing.num_recomputed_tokens,
            },
        )
        for at_ns in request.preempted:
            decode.add_event(Event.PREEMPTED, timestamp=self._clock.unix_ns(at_ns))
        decode.end(start_ns + timing.decode_ns)
