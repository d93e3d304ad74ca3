"""Decides how many prefill tokens fit into a step. Pure: durations come in as numbers. Only the scheduler changes it.

The duration of a step is modelled as

    t = floor + per_prefill_token * prefill tokens + per_decode * decoding sequences

with coefficients fitted to observed steps, old ones fading away. What counts is the error relative to a step's duration:
else a single step that took seconds (it compiled a kernel) would outweigh hundreds of good ones.

While sequences decode, a step takes as many prefill tokens as keep t within the target for the gap between two tokens; where
decodes leave little of it, as many as take a set multiple of the decodes' time. Otherwise, and before the fit is of use, it
takes as many as the limit allows. Prefill always gets a minimum, so that a tight target slows it down and never stops it.
"""

from __future__ import annotations

from typing import Final

_PREFILL_UNIT: Final = 256.0  # features of about equal size keep the fit well conditioned
_DECODE_UNIT: Final = 16.0
_DECAY: Final = 0.98  # an observation counts half after 34 more
_RIDGE: Final = 0.0004  # of all weights: what the data do not tell stays as it was
# A step this much slower than predicted was disturbed: a compilation, a page fault. One this much faster was done long before
# it was read, while the host was busy with the step behind it.
_MAX_SURPRISE: Final = 4.0
_MIN_OBSERVATIONS: Final = 3
_CONVERGED: Final = 1e-5  # share of the largest coefficient that a round of the fit may move without another one

_Vector = list[float]
_Matrix = list[list[float]]


class StepBudget:
    """Token budget of a step.

    Args:
        max_step_tokens: most tokens computed in one step.
        itl_target_s: seconds that a step with prefill aims at while sequences decode; None means no target. Decodes that
            take more than a part of it by themselves make it longer, see `prefill_share`.
        min_chunk: prefill tokens that a step may always take, within `max_step_tokens`.
        enough_tokens: with a target, most tokens of a step that also decodes, but for rounding: more of them would compute
            no faster, and make others wait. Prefill gets half of them at least. None means no such limit.
        granule: with a target, a step that also decodes is rounded to a multiple of so many tokens: a device that
            computes in tiles takes as long for a part of a tile as for a whole one.
        prefill_share: however near decodes come to the target, prefill may take so many times as long as they do.
    """

    def __init__(
        self,
        *,
        max_step_tokens: int,
        itl_target_s: float | None = None,
        min_chunk: int = 32,
        enough_tokens: int | None = None,
        granule: int = 1,
        prefill_share: float = 1.0,
    ) -> None:
        if min(max_step_tokens, min_chunk, granule) < 1:
            raise ValueError(
                f"max_step_tokens {max_step_tokens}, min_chunk {min_chunk}, granule {granule}: one is below 1"
            )
        self.max_step_tokens = max_step_tokens
        self.min_chunk = min(min_chunk, max_step_tokens)
        self._itl_target_s = itl_target_s
        self._enough_tokens = max_step_tokens if enough_tokens is None else enough_tokens
        self._granule = granule
        self._prefill_share = prefill_share
        self._gram: _Matrix = [[0.0] * 3 for _ in range(3)]
        self._moment: _Vector = [0.0] * 3
        self._weight = 0.0
        self._fit: _Vector = [0.0] * 3
        self._num_observed = 0
        self._num_prefill_observed = 0
        self._num_decode_observed = 0

    @property
    def floor_s(self) -> float:
        """Fitted duration of a step without work, seconds."""
        return self._fit[0]

    @property
    def prefill_tokens_per_s(self) -> float:
        """Fitted prefill rate; 0 if not yet known."""
        per_token_s = self._fit[1] / _PREFILL_UNIT
        return 1.0 / per_token_s if self._knows_prefill and per_token_s > 0 else 0.0

    @property
    def sustained_prefill_tokens_per_s(self) -> float:
        """Prompt tokens that full steps compute in a second, floor included: how fast a queue shrinks; 0 if not yet known.

        Where all steps are of one size nothing tells floor from slope, and the slope alone may come out several times too
        fast. Their sum at that size is right all the same.
        """
        step_s = self._predict(self.max_step_tokens, 0)
        return self.max_step_tokens / step_s if self._knows_prefill and step_s > 0 else 0.0

    @property
    def decode_s_per_sequence(self) -> float:
        """Fitted time that one more decoding sequence adds to a step, seconds; 0 if not yet known."""
        return self._fit[2] / _DECODE_UNIT if self._num_decode_observed >= _MIN_OBSERVATIONS else 0.0

    def prefill_room(self, num_decodes: int) -> int:
        """Return the most prefill tokens for a step that decodes so many sequences."""
        hard_room = max(0, self.max_step_tokens - num_decodes)
        prefill_rate = self.prefill_tokens_per_s
        if self._itl_target_s is None or num_decodes == 0 or prefill_rate == 0.0:
            return hard_room
        decode_s = self._predict(0, num_decodes)
        # Prompts are not fed in crumbs, which would cost the machine its rate and all the others their turn.
        spare_s = max(self._itl_target_s - decode_s, self._prefill_share * decode_s)
        enough = max(self._enough_tokens - num_decodes, self._enough_tokens // 2)
        room = min(enough, int(spare_s * prefill_rate))
        whole = round((room + num_decodes) / self._granule) * self._granule - num_decodes
        return min(hard_room, max(self.min_chunk, whole if whole > 0 else room))

    def observe(self, seconds: float, *, num_prefill_tokens: int, num_decodes: int) -> None:
        """Learn from a step's duration."""
        if seconds <= 0:
            return
        expected = self._predict(num_prefill_tokens, num_decodes) if self._num_observed >= _MIN_OBSERVATIONS else 0.0
        if expected > 0:
            seconds = min(max(seconds, expected / _MAX_SURPRISE), expected * _MAX_SURPRISE)
        self._num_observed += 1
        self._num_prefill_observed += num_prefill_tokens > 0
        self._num_decode_observed += num_decodes > 0
        features = [1.0, num_prefill_tokens / _PREFILL_UNIT, num_decodes / _DECODE_UNIT]
        weight = 1.0 / max(seconds, expected) ** 2
        self._weight = _DECAY * self._weight + weight
        for row, feature in enumerate(features):
            self._moment[row] = _DECAY * self._moment[row] + weight * feature * seconds
            for column, other in enumerate(features):
                self._gram[row][column] = _DECAY * self._gram[row][column] + weight * feature * other
        self._fit = _fit_non_negative(self._gram, self._moment, self._fit, _RIDGE * self._weight)

    @property
    def _knows_prefill(self) -> bool:
        return self._num_prefill_observed >= _MIN_OBSERVATIONS

    def _predict(self, num_prefill_tokens: int, num_decodes: int) -> float:
        floor, per_prefill, per_decode = self._fit
        return floor + per_prefill * num_prefill_tokens / _PREFILL_UNIT + per_decode * num_decodes / _DECODE_UNIT


def _fit_non_negative(gram: _Matrix, moment: _Vector, last: _Vector, ridge: float) -> _Vector:
    """Minimize the squared error plus a ridge around the last fit, with no coefficient below 0.

    Three coefficients: coordinate descent from the last fit converges in a few rounds, and never divides by zero.
    """
    fit = list(last)
    for _ in range(20):
        moved = 0.0
        for row, weights in enumerate(gram):
            own = weights[row]
            others = weights[0] * fit[0] + weights[1] * fit[1] + weights[2] * fit[2] - own * fit[row]
            value = max(0.0, (moment[row] - others + ridge * last[row]) / (own + ridge))
            moved = max(moved, abs(value - fit[row]))
            fit[row] = value
        if moved <= _CONVERGED * max(fit):
            break
    return fit
