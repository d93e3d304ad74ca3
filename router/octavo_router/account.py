"""Accounts for one Generate call: its times, its spans, its metrics and its one log line. Never any text.

What a call did is noted while it runs; all that tells of it is made when it has ended, when nobody waits for it.
"""

from __future__ import annotations

import time

import structlog
from octavo.attributes import Attribute, Event, Log, Span
from octavo.tracing import record_span, trace_id_of
from octavo.v1 import inference_pb2
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from octavo_router.dispatch import Dispatch
from octavo_router.journal import Ending
from octavo_router.metrics import RouterMetrics

_log = structlog.get_logger("octavo.router.request")
_SERVER_FAULTS = frozenset({"unknown", "internal", "unavailable", "deadline_exceeded", "unimplemented", "data_loss"})


class Account:
    """Told what happens to a call as it happens; `close` settles."""

    def __init__(
        self, span: trace.Span, metrics: RouterMetrics, tracer: trace.Tracer, *, request_id: str, router_id: str
    ) -> None:
        self.tokenize_s = 0.0
        self._span = span
        self._metrics = metrics
        self._tracer = tracer
        self._request_id = request_id
        self._router_id = router_id
        self._started_at = time.perf_counter()
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._prompt_tokens = 0
        self._tokenize_started_ns: int | None = None
        self._asked: dict[str, str | int | float] = {}
        self._dispatch: Dispatch | None = None
        self._endings: list[Ending] = []

    def describe(self, request: inference_pb2.GenerateRequest, *, model: str, tenant: str) -> None:
        """Note what was asked for."""
        sampling = request.sampling
        self._asked = {
            Attribute.OPERATION: "chat" if request.input.HasField("chat") else "text_completion",
            Attribute.PROVIDER: "octavo",
            Attribute.MODEL: model,
            Attribute.REQUEST_ID: self._request_id,
            Attribute.MAX_TOKENS: sampling.max_tokens,
            Attribute.TEMPERATURE: sampling.temperature if sampling.HasField("temperature") else 1.0,
            Attribute.TOP_P: sampling.top_p if sampling.HasField("top_p") else 1.0,
            Attribute.TOP_K: sampling.top_k,
        }
        if tenant:
            self._asked[Attribute.TENANT] = tenant

    def tokenized(self, num_tokens: int, started_ns: int, seconds: float) -> None:
        """Note the prompt's length, and when (unix time) and for how long it was tokenized."""
        self._prompt_tokens = num_tokens
        self._tokenize_started_ns, self.tokenize_s = started_ns, seconds

    def had_turn(self, waited_s: float) -> None:
        """Note how long it waited for its turn."""
        self._asked[Attribute.QUEUE_S] = waited_s

    def dispatched(self, dispatch: Dispatch, seed: int) -> None:
        """Note who carries the request."""
        self._dispatch = dispatch
        # Attributes are signed 64-bit integers, seeds unsigned.
        self._asked[Attribute.SEED] = str(seed)

    def sent_tokens(self) -> None:
        """Note that output went to the client."""
        self._last_at = time.perf_counter()
        if self._first_at is None:
            self._first_at = self._last_at
            self._span.add_event(Event.FIRST_TOKEN)

    def ended(self, ending: Ending) -> None:
        """Note the end of one choice."""
        self._endings.append(ending)

    def close(self, failure: str | None) -> None:
        """Settle: `failure` is the gRPC status in lower case, or None if the call ended well."""
        ended_at = time.perf_counter()
        outcome = failure or (self._endings[-1].value if self._endings else "cancelled")
        duration_s = ended_at - self._started_at
        ttft_s = None if self._first_at is None else self._first_at - self._started_at
        self._observe(outcome, duration_s, ttft_s)
        self._finish_span(failure, ttft_s)
        journal = None if self._dispatch is None else self._dispatch.journal
        _log.info(
            "request_finished",
            **{
                Log.REQUEST_ID: self._request_id,
                Log.ROUTER_ID: self._router_id,
                Log.ENGINE_ID: "" if self._dispatch is None else self._dispatch.engine_id,
                Log.TRACE_ID: trace_id_of(self._span),
            },
            outcome=outcome,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=0 if journal is None else journal.cached_tokens,
            output_tokens=0 if journal is None else journal.num_output_tokens,
            num_moves=0 if journal is None else journal.num_moves,
            duration_s=round(duration_s, 6),
            ttft_s=None if ttft_s is None else round(ttft_s, 6),
            tokenize_s=round(self.tokenize_s, 6),
            route_s=round(self._route_s, 6),
        )

    @property
    def _route_s(self) -> float:
        return 0.0 if self._dispatch is None else sum(decision.seconds for decision in self._dispatch.decisions)

    def _observe(self, outcome: str, duration_s: float, ttft_s: float | None) -> None:
        metrics = self._metrics
        metrics.requests.labels(outcome).inc()
        metrics.duration.observe(duration_s)
        metrics.stage.labels("tokenize").observe(self.tokenize_s)
        metrics.prompt_tokens.inc(self._prompt_tokens)
        if self._dispatch is None:
            return
        journal = self._dispatch.journal
        metrics.stage.labels("route").observe(self._route_s)
        metrics.cached_tokens.inc(journal.cached_tokens)
        # The router that delivered the rest has counted it; its times are not known here.
        metrics.output_tokens.inc(max(0, journal.num_output_tokens - journal.num_resumed_tokens))
        if ttft_s is not None:
            metrics.ttft.observe(ttft_s)
        longest = max(len(choice.token_ids) for choice in journal.choices)
        is_whole = journal.num_resumed_tokens == 0
        if is_whole and self._first_at is not None and self._last_at is not None and longest > 1:
            metrics.tpot.observe((self._last_at - self._first_at) / (longest - 1))

    def _finish_span(self, failure: str | None, ttft_s: float | None) -> None:
        span = self._span
        if failure in _SERVER_FAULTS:
            span.set_status(StatusCode.ERROR, failure)
        if not span.is_recording():
            return
        self._record_stages()
        span.set_attributes(self._asked)
        span.set_attribute(Attribute.INPUT_TOKENS, self._prompt_tokens)
        if ttft_s is not None:
            span.set_attribute(Attribute.TTFT_S, ttft_s)
        if self._endings:
            span.set_attribute(Attribute.FINISH_REASONS, [ending.value for ending in self._endings])
        if self._dispatch is not None:
            journal = self._dispatch.journal
            span.set_attributes(
                {
                    Attribute.OUTPUT_TOKENS: journal.num_output_tokens,
                    Attribute.CACHED_TOKENS: journal.cached_tokens,
                    Attribute.ENGINE_ID: self._dispatch.engine_id,
                    Attribute.MOVES: journal.num_moves,
                }
            )

    def _record_stages(self) -> None:
        if self._tokenize_started_ns is not None:
            record_span(
                self._tracer,
                Span.ROUTER_TOKENIZE,
                parent=self._span,
                started_ns=self._tokenize_started_ns,
                seconds=self.tokenize_s,
                attributes={Attribute.INPUT_TOKENS: self._prompt_tokens},
            )
        for decision in () if self._dispatch is None else self._dispatch.decisions:
            decision.record(self._tracer, self._span)
