"""Prometheus metrics of a router, in a registry of their own."""

from __future__ import annotations

from octavo.attributes import Metric
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TTFT_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_TPOT_BUCKETS = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_STAGE_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)


class RouterMetrics:
    """Every series that a router exports. Request durations are seconds."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        # outcome: a finish reason, or the gRPC status of a request that ended with one.
        self.requests = Counter(Metric.ROUTER_REQUESTS, "Requests ended", ["outcome"], registry=registry)
        self.ttft = Histogram(
            Metric.ROUTER_TTFT, "Accepted to first token sent", buckets=_TTFT_BUCKETS, registry=registry
        )
        self.tpot = Histogram(
            Metric.ROUTER_TPOT, "Mean time per token after the first", buckets=_TPOT_BUCKETS, registry=registry
        )
        self.duration = Histogram(
            Metric.ROUTER_DURATION, "Accepted to ended", buckets=_DURATION_BUCKETS, registry=registry
        )
        self.stage = Histogram(
            Metric.ROUTER_STAGE, "Work of the router itself", ["stage"], buckets=_STAGE_BUCKETS, registry=registry
        )
        self.in_flight = Gauge(Metric.ROUTER_IN_FLIGHT, "Requests now", registry=registry)
        # reason: of the error, as in google.rpc.ErrorInfo.
        self.refusals = Counter(Metric.ROUTER_REFUSALS, "Requests not admitted", ["reason"], registry=registry)
        self.queued = Gauge(Metric.ROUTER_QUEUED, "Requests waiting for a turn", ["service_class"], registry=registry)
        self.queue_wait = Histogram(
            Metric.ROUTER_QUEUE_WAIT,
            "Waiting for a turn, of requests that had one",
            ["service_class"],
            buckets=_QUEUE_BUCKETS,
            registry=registry,
        )
        self.prompt_tokens = Counter(Metric.ROUTER_PROMPT_TOKENS, "Prompt tokens", registry=registry)
        self.cached_tokens = Counter(Metric.ROUTER_CACHED_TOKENS, "Prompt tokens found cached", registry=registry)
        self.output_tokens = Counter(Metric.ROUTER_OUTPUT_TOKENS, "Output tokens", registry=registry)
        self.engines = Gauge(Metric.ROUTER_ENGINES, "Engines by state", ["state"], registry=registry)
        self.redis_up = Gauge(Metric.ROUTER_REDIS_UP, "Whether Redis answers", registry=registry)
        self.resident_pages = Gauge(
            Metric.ROUTER_RESIDENT_PAGES, "Page hashes in the directory", ["engine_id"], registry=registry
        )
