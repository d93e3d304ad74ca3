"""Writes one log line per finished request: ids, counts and durations, never content."""

from __future__ import annotations

import structlog
from octavo.attributes import Log
from octavo.tracing import context_of
from opentelemetry import trace

from octavo_engine.live_request import LiveRequest
from octavo_engine.sequence import FinishReason

_log = structlog.get_logger()


def log_finished(request: LiveRequest, ended_ns: int) -> None:
    """Log a request that ended at this monotonic time."""
    timing = request.timing()
    span = trace.get_current_span(context_of(request.traceparent)).get_span_context()
    ids = {Log.REQUEST_ID: request.request_id}
    if span.is_valid:
        ids[Log.TRACE_ID] = f"{span.trace_id:032x}"
    _log.info(
        "request_finished",
        **ids,
        attempt=request.attempt,
        reasons=[FinishReason(end.reason).name.lower() for end in request.ends],
        num_prompt_tokens=request.num_prompt,
        num_cached_tokens=request.cached_tokens,
        num_output_tokens=request.output_tokens,
        num_preemptions=timing.num_preemptions,
        queue_s=_seconds(timing.queue_ns),
        prefill_s=_seconds(timing.prefill_ns),
        decode_s=_seconds(timing.decode_ns),
        total_s=_seconds(ended_ns - request.command.arrival_ns),
    )


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 6)
