"""Other ways to choose an engine, to compare with. Each gets Octavo's own load figures, so only the choice differs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from octavo.page_hash import token_bytes
from octavo_router.policy import Cost, gumbel
from octavo_router.routing import Prompt
from sim.router import Choose, SimulatedRouter

_RING_TOKENS = 256
_RING_BOUND = 1.25


def round_robin() -> Choose:
    """Each engine in turn; routers start at different ones."""

    def choose(router: SimulatedRouter, prompt: Prompt) -> Cost:
        costs = _blind(router, prompt)
        return costs[(router.number + router.num_routed) % len(costs)]

    return choose


def power_of_two(seed: int) -> Choose:
    """The cheaper one of two engines drawn at random, by Octavo's cost with no prefix known."""
    draw = random.Random(seed)

    def choose(router: SimulatedRouter, prompt: Prompt) -> Cost:
        costs = _blind(router, prompt)
        return min(draw.sample(costs, min(2, len(costs))), key=lambda cost: cost.cost_s)

    return choose


def consistent_hash() -> Choose:
    """The first engine on the ring after the prompt's first 256 tokens that is not overloaded.

    Overloaded: more requests than 1.25 times the mean of all engines, this one included ("consistent hashing with
    bounded loads", Mirrokni, Thorup and Zadimoghaddam, 2018).
    """

    def choose(router: SimulatedRouter, prompt: Prompt) -> Cost:
        costs = _blind(router, prompt)
        key = token_bytes(prompt.token_ids[:_RING_TOKENS])
        ring = sorted(costs, key=lambda cost: -gumbel(key, cost.engine_id))
        num_waiting = {engine.engine_id: engine.load.report.num_waiting for engine in router.engines}
        num_requests = {cost.engine_id: cost.num_running + num_waiting[cost.engine_id] for cost in costs}
        bound = _RING_BOUND * (sum(num_requests.values()) + 1) / len(ring)
        return next((cost for cost in ring if num_requests[cost.engine_id] + 1 <= bound), ring[0])

    return choose


def _blind(router: SimulatedRouter, prompt: Prompt) -> Sequence[Cost]:
    """Return the engines' costs as if no page were cached, in the order of their ids."""
    costs = [
        replace(
            cost,
            matched_pages=0,
            uncached_tokens=len(prompt),
            prefill_s=(cost.waiting_tokens + len(prompt)) / cost.prefill_tokens_per_s,
        )
        for cost in router.costs(prompt)
    ]
    return sorted(costs, key=lambda cost: cost.engine_id)
