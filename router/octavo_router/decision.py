"""A routing decision as a span and as a log line: every term of every engine's cost, so that both show why."""

from __future__ import annotations

import json
from dataclasses import dataclass

from octavo.attributes import Attribute, Span
from octavo.tracing import record_span
from opentelemetry import trace

from octavo_router.routing import Route

_MAX_CANDIDATES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A route, the number of the attempt that followed it, and when it was decided (unix time)."""

    route: Route
    attempt: int
    started_ns: int
    seconds: float

    def terms(self) -> list[dict[str, str | int | float]]:
        """Return the engines from best to worst, each with every term of its cost."""
        return [
            {
                "engine_id": cost.engine_id,
                "matched_pages": cost.matched_pages,
                "waiting_tokens": cost.waiting_tokens,
                "uncached_tokens": cost.uncached_tokens,
                "prefill_tokens_per_s": round(cost.prefill_tokens_per_s, 1),
                "pool_usage": round(cost.pool_usage, 4),
                "num_running": cost.num_running,
                "prefill_s": round(cost.prefill_s, 6),
                "pool_s": round(cost.pool_s, 6),
                "decode_s": round(cost.decode_s, 6),
                "cost_s": round(cost.cost_s, 6),
                "recent_s": round(cost.recent_s, 6),
            }
            for cost in self.route.ranked[:_MAX_CANDIDATES]
        ]

    def record(self, tracer: trace.Tracer, parent: trace.Span) -> None:
        """Record it as a span."""
        record_span(
            tracer,
            Span.ROUTER_ROUTE,
            parent=parent,
            started_ns=self.started_ns,
            seconds=self.seconds,
            attributes=self._attributes(),
        )

    def _attributes(self) -> dict[str, str | int]:
        route = self.route
        attributes: dict[str, str | int] = {Attribute.ATTEMPT: self.attempt, Attribute.ROUTE_REASON: route.reason}
        if route.ranked:
            attributes[Attribute.ENGINE_ID] = route.ranked[0].engine_id
            attributes[Attribute.PROMPT_PAGES] = route.prompt_pages
            attributes[Attribute.MATCHED_PAGES] = route.ranked[0].matched_pages
            attributes[Attribute.ROUTE_CANDIDATES] = json.dumps(self.terms(), separators=(",", ":"))
        return attributes
