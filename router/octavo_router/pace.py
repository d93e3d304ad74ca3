"""Measures how fast requests leave the queue and how long they take then. Pure: times come in as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_WINDOW_S: Final = 5.0
_LEAST_S: Final = 0.25  # a rate of less time than this is chance
_MEMORY: Final = 0.95  # a request counts half after 13 more
_RIDGE: Final = 0.05
_FIRST_OUTPUT: Final = 256  # output tokens of a choice, before any has ended
_FIRST_WEIGHT: Final = 2.0  # requests that this assumption counts for


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a request had used when it was over.

    Attributes:
        tokens: prompt tokens computed for it, and all output tokens.
        num_output: output tokens of its longest choice.
        is_whole: whether it came to its own end: nobody gave it up.
    """

    tokens: int = 0
    num_output: int = 0
    is_whole: bool = False


class DrainRate:
    """Tokens per second that have their turn while others wait. What passes an empty queue says nothing about its pace."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._at: float | None = None  # up to when the time is counted; None: nobody waits

    @property
    def tokens_per_s(self) -> float | None:
        """The rate of the last seconds that somebody waited in; None as long as too little is known."""
        return self._tokens / self._seconds if self._seconds >= _LEAST_S and self._tokens else None

    def busy(self, now: float) -> None:
        """Note that somebody waits from now on."""
        if self._at is None:
            self._at = now

    def took(self, tokens: int, now: float) -> None:
        """Note that a waiting request had its turn."""
        self._pass_time(now)
        self._tokens += tokens

    def idle(self, now: float) -> None:
        """Note that nobody waits any more."""
        self._pass_time(now)
        self._at = None

    def update(self, now: float) -> None:
        """Count the time until now: a queue that stands still has a low rate."""
        self._pass_time(now)

    def _pass_time(self, now: float) -> None:
        if self._at is None or now <= self._at:
            return
        passed_s = now - self._at
        fade = math.exp(-passed_s / _WINDOW_S)
        self._tokens *= fade
        self._seconds = self._seconds * fade + passed_s
        self._at = now


class ServiceTime:
    """What became of the requests that ended lately: how many tokens they gave, and how long that took.

    One that was given up, by its deadline perhaps, tells no less of the time: else only those in time would count.

    The time from the turn to the end is taken as a line over the output tokens, fitted to the last requests: were it
    proportional, the wait for the first token would make all outputs seem as slow as the shortest.
    """

    def __init__(self) -> None:
        self._num_ended = _FIRST_WEIGHT
        self._all_output = _FIRST_WEIGHT * _FIRST_OUTPUT
        # Sums over the requests measured: of 1, of tokens, seconds, tokens squared, and tokens times seconds.
        self._sums = [0.0, 0.0, 0.0, 0.0, 0.0]
        self._error = 0.0  # mean of its squares

    @property
    def mean_output(self) -> float:
        """Output tokens of a choice."""
        return self._all_output / self._num_ended

    @property
    def deviation_s(self) -> float:
        """By how much `seconds_for` was wrong of late, as a root of the mean square."""
        return math.sqrt(self._error)

    def seconds_for(self, num_output: int) -> float:
        """Return the time from its turn to its end of a request with so many output tokens; 0 if nothing is known."""
        num, tokens, seconds, squares, products = self._sums
        if not num:
            return 0.0
        mean_tokens, mean_s = tokens / num, seconds / num
        variance = squares / num - mean_tokens**2
        covariance = products / num - mean_tokens * mean_s
        # What outputs of equal length do not tell is taken as proportional.
        ridge = _RIDGE * mean_tokens**2
        slope = max(0.0, (covariance + ridge * mean_s / mean_tokens) / (variance + ridge))
        return max(0.0, mean_s + slope * (num_output - mean_tokens))

    def ended(self, spent: Spent, seconds: float) -> None:
        """Note a request that was over so long after its turn."""
        num_output = spent.num_output
        if spent.is_whole:
            self._num_ended = self._num_ended * _MEMORY + 1
            self._all_output = self._all_output * _MEMORY + num_output
        if num_output == 0:
            return
        if self._sums[0]:
            self._error += (1 - _MEMORY) * ((seconds - self.seconds_for(num_output)) ** 2 - self._error)
        new = (1.0, num_output, seconds, num_output**2, num_output * seconds)
        self._sums = [old * _MEMORY + each for old, each in zip(self._sums, new, strict=True)]
