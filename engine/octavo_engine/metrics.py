"""The engine's Prometheus metrics. Everything is observed in the front process, per step or per request, never per token."""

from __future__ import annotations

from typing import Final

from octavo.attributes import Metric
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo_engine.live_request import LiveRequest
from octavo_engine.messages import StepFrame
from octavo_engine.sequence import FinishReason

_STEP_S: Final = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 10)
_STEP_TOKENS: Final = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_WAIT_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 30, 60)
_NS_PER_S: Final = 1e9


class Metrics:
    """All series of one engine process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._steps = Counter(Metric.ENGINE_STEPS, "Steps that computed tokens.", registry=registry)
        self._step_duration = Histogram(
            Metric.ENGINE_STEP_DURATION,
            "Time from a step's launch to its results, s.",
            buckets=_STEP_S,
            registry=registry,
        )
        self._step_tokens = Histogram(
            Metric.ENGINE_STEP_TOKENS, "Tokens computed in a step.", buckets=_STEP_TOKENS, registry=registry
        )
        self._requests = Counter(
            Metric.ENGINE_REQUESTS,
            "Requests that ended, by the finish reason of their last choice.",
            ["reason"],
            registry=registry,
        )
        self._requests_by_reason = {
            reason: self._requests.labels(reason=reason.name.lower()) for reason in FinishReason
        }
        self._running = Gauge(Metric.ENGINE_RUNNING, "Sequences running.", registry=registry)
        self._waiting = Gauge(Metric.ENGINE_WAITING, "Requests waiting for admission.", registry=registry)
        pages = Gauge(Metric.ENGINE_PAGES, "Pages of the pool, by state.", ["state"], registry=registry)
        self._pages_in_use = pages.labels(state="in_use")
        self._pages_cached = pages.labels(state="cached")
        self._pages_free = pages.labels(state="free")
        self._preemptions = Counter(
            Metric.ENGINE_PREEMPTIONS, "Sequences that lost their pages to others.", registry=registry
        )
        self._prompt_tokens = Counter(
            Metric.ENGINE_PROMPT_TOKENS, "Prompt tokens of ended requests.", registry=registry
        )
        self._cached_tokens = Counter(
            Metric.ENGINE_CACHED_TOKENS, "Prompt tokens found in the prefix cache.", registry=registry
        )
        self._output_tokens = Counter(Metric.ENGINE_OUTPUT_TOKENS, "Output tokens.", registry=registry)
        self._queue = Histogram(
            Metric.ENGINE_QUEUE, "Time from arrival to the first step, s.", buckets=_WAIT_S, registry=registry
        )
        self._prefill = Histogram(
            Metric.ENGINE_PREFILL, "Time from the first step to the first token, s.", buckets=_WAIT_S, registry=registry
        )
        self._redis_up = Gauge(Metric.ENGINE_REDIS_UP, "1 while Redis answers.", registry=registry)

    def take_step(self, frame: StepFrame) -> None:
        """Observe a step."""
        if frame.num_tokens:
            self._steps.inc()
            self._step_duration.observe((frame.ended_ns - frame.started_ns) / _NS_PER_S)
            self._step_tokens.observe(frame.num_tokens)
        if frame.keys:
            self._output_tokens.inc(len(frame.keys))
        if frame.preempted:
            self._preemptions.inc(len(frame.preempted))
        load = frame.load
        self._running.set(load.num_running)
        self._waiting.set(load.num_waiting)
        self._pages_in_use.set(load.pages_in_use)
        self._pages_cached.set(load.pages_cached)
        self._pages_free.set(load.pages_free)

    def take_finished(self, request: LiveRequest, ended_ns: int) -> None:
        """Observe a request that ended."""
        del ended_ns
        self._requests_by_reason[FinishReason(request.ends[-1].reason)].inc()
        self._prompt_tokens.inc(request.num_prompt)
        self._cached_tokens.inc(request.cached_tokens)
        if request.started is not None:
            timing = request.timing()
            self._queue.observe(timing.queue_ns / _NS_PER_S)
            self._prefill.observe(timing.prefill_ns / _NS_PER_S)

    def redis_up(self, up: bool) -> None:  # noqa: FBT001 - the value of a gauge
        """Note whether Redis answers."""
        self._redis_up.set(up)
