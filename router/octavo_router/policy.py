"""Ranks engines for a prompt by one cost in seconds. Pure: no clock, no state, no thresholds.

    cost = (W + uncached * U) / P  +  pool_s * k / (1 - k)  +  decode * R * s

W: prefill tokens ahead of this request. U: prompt tokens that the engine would have to compute. P: its prefill rate.
k: share of its pool in use once the request is in. R: sequences decoding there. s: time that one more of them adds to a
step. The first term is the wait for the first token, of this request and of the next one behind it: whoever saves
computing saves it for both. The second keeps pools from filling up (a full pool preempts). The third is what a busy batch
costs over the steps of an output. Engines that cost about the same take turns, by what each was sent lately. How the
weights were found: docs/routing.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Used where no engine has measured its own rate yet; any one number serves, for it is the same for all.
DEFAULT_PREFILL_TOKENS_PER_S = 2000.0
DEFAULT_DECODE_S_PER_SEQUENCE = 0.0005
_FULLEST = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How the terms weigh against each other.

    Attributes:
        uncached: how often a token to compute counts: once for this request, and once for those that it keeps waiting.
            With 1 a prompt leaves its prefix for every slightly shorter queue, and all engines compute the same pages.
        pool_s: seconds that a half full pool costs.
        decode: steps over which a request shares a batch: about the tokens of a short output.
        tie: relative cost within which two engines count as equal.
        even: how strongly recent work counts among equals: an engine that was sent a hundredth more than another gets
            e^(even/100) times fewer of the prompts that both may have.
    """

    uncached: float = 3.0
    pool_s: float = 0.15
    decode: float = 64.0
    tie: float = 0.1
    even: float = 60.0


# Nobody changes a view or a cost. They are not frozen because a frozen dataclass takes several times as long to make, and
# a decision makes one of each for every engine.
@dataclass(slots=True, kw_only=True)
class EngineView:
    """What the policy knows of one engine. Rates are None until measured. `recent_*`: tokens that it was sent."""

    engine_id: str
    matched_pages: int
    page_size: int
    waiting_tokens: int
    num_running: int
    pages_in_use: int
    num_pages: int
    prefill_tokens_per_s: float | None
    decode_s_per_sequence: float | None
    recent_tokens: float
    recent_output_tokens: float


@dataclass(slots=True, kw_only=True)
class Cost:
    """Every term of one engine's cost, and `cost_s`, their sum; times in seconds. `recent_s` decides among equals only."""

    engine_id: str
    matched_pages: int
    waiting_tokens: int
    uncached_tokens: int
    prefill_tokens_per_s: float
    pool_usage: float
    num_running: int
    prefill_s: float
    pool_s: float
    decode_s: float
    cost_s: float
    recent_s: float


def rank(views: Sequence[EngineView], *, prompt_len: int, key: bytes, weights: Weights | None = None) -> list[Cost]:
    """Return the engines from best to worst.

    Engines whose cost is within the tie of the best are ordered by matched pages, then by a rendezvous hash of `key`,
    weighted by how little each was sent lately: routers that know the same send equal cold prompts to the same engine.

    Args:
        views: candidates, each with its own id.
        prompt_len: prompt tokens.
        key: names what the prompt may share with others that are on their way.
        weights: how the terms weigh; the defaults if None.
    """
    weights = weights or Weights()
    prefill_rate = _typical([view.prefill_tokens_per_s for view in views], DEFAULT_PREFILL_TOKENS_PER_S)
    decode_slope = _typical([view.decode_s_per_sequence for view in views], DEFAULT_DECODE_S_PER_SEQUENCE)
    costs = [_cost(view, prompt_len, prefill_rate, decode_slope, weights) for view in views]
    if not costs:
        return []
    limit = min(cost.cost_s for cost in costs) * (1 + weights.tie)
    tied = [cost for cost in costs if cost.cost_s <= limit]
    others = [cost for cost in costs if cost.cost_s > limit]
    recent_s = math.fsum(cost.recent_s for cost in costs) / len(costs) or 1.0
    tied.sort(
        key=lambda cost: (
            -cost.matched_pages,
            weights.even * cost.recent_s / recent_s - gumbel(key, cost.engine_id),
            cost.engine_id,
        )
    )
    others.sort(key=lambda cost: (cost.cost_s, cost.engine_id))
    return tied + others


def gumbel(key: bytes, engine_id: str) -> float:
    """Return the draw of an engine for a key, highest first; engines that come or go move no other key.

    The draws of a key are hashed, and Gumbel distributed: added to the logarithms of weights, the highest is that of an
    engine with a probability proportional to its weight (the Gumbel-max trick; weighted rendezvous hashing of
    Schindelhauer and Schomaker, 2005, in logarithms).
    """
    digest = hashlib.sha256(len(key).to_bytes(4, "little") + key + engine_id.encode()).digest()
    uniform = ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) / 2**52  # neither 0 nor 1
    return -math.log(-math.log(uniform))


def _cost(view: EngineView, prompt_len: int, prefill_rate: float, decode_slope: float, weights: Weights) -> Cost:
    # The last prompt token is always computed: its logits choose the first output token.
    uncached = max(1, prompt_len - view.matched_pages * view.page_size)
    rate = view.prefill_tokens_per_s or prefill_rate
    new_pages = -(-uncached // view.page_size)
    usage = min(_FULLEST, (view.pages_in_use + new_pages) / max(1, view.num_pages))
    prefill_s = (view.waiting_tokens + weights.uncached * uncached) / rate
    pool_s = weights.pool_s * usage / (1 - usage)
    decode_s = weights.decode * view.num_running * (view.decode_s_per_sequence or decode_slope)
    return Cost(
        engine_id=view.engine_id,
        matched_pages=view.matched_pages,
        waiting_tokens=view.waiting_tokens,
        uncached_tokens=uncached,
        prefill_tokens_per_s=rate,
        pool_usage=usage,
        num_running=view.num_running,
        prefill_s=prefill_s,
        pool_s=pool_s,
        decode_s=decode_s,
        cost_s=prefill_s + pool_s + decode_s,
        # By the mean rates: what an engine's own fit is off by would be made up for in requests.
        recent_s=view.recent_tokens / prefill_rate + view.recent_output_tokens * decode_slope,
    )


def _typical(rates: Sequence[float | None], default: float) -> float:
    """Return the mean of the rates that are known: an engine that has not measured yet is taken for an average one."""
    known = [rate for rate in rates if rate]
    # fsum: the same mean in whatever order a router lists its engines.
    return math.fsum(known) / len(known) if known else default
