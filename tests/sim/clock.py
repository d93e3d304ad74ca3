"""A clock that stands still until the next event: the order of events, and so every figure, depends on the seed alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Event = Callable[[], None]


class VirtualClock:
    """Events in the order of their times; those of equal times in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = count()

    @property
    def now_ns(self) -> int:
        """The same in nanoseconds."""
        return round(self.now * 1e9)

    def after(self, seconds: float, event: Event) -> None:
        """Let an event happen in so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, until: Callable[[], bool]) -> None:
        """Let events happen until a condition holds.

        Raises:
            RuntimeError: nothing is left to happen, and it does not hold.
        """
        while not until():
            if not self._events:
                raise RuntimeError(f"the simulation stands still at {self.now:.3f} s")
            self.now, _, event = heapq.heappop(self._events)
            event()
