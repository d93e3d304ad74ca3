"""A routing decision as span attributes: every term of every engine's cost, so that a trace shows why."""

from __future__ import annotations

import json

from octavo.attributes import Attribute

from octavo_router.routing import Route

_MAX_CANDIDATES = 8


def route_attributes(route: Route, attempt: int) -> dict[str, str | int]:
    """Return the attributes of the span of a decision that an attempt of this number followed."""
    if not route.ranked:
        return {Attribute.ATTEMPT: attempt, Attribute.ROUTE_REASON: "no engine"}
    candidates = [
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
        }
        for cost in route.ranked[:_MAX_CANDIDATES]
    ]
    return {
        Attribute.ATTEMPT: attempt,
        Attribute.ENGINE_ID: route.ranked[0].engine_id,
        Attribute.PROMPT_PAGES: route.prompt_pages,
        Attribute.MATCHED_PAGES: route.ranked[0].matched_pages,
        Attribute.ROUTE_REASON: route.reason,
        Attribute.ROUTE_CANDIDATES: json.dumps(candidates, separators=(",", ":")),
    }
