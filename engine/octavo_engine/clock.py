"""Maps the monotonic clock, in which the engine thinks, to unix time, which leaves it."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """A fixed offset between the two clocks: intervals keep their length whatever happens to the wall clock.

    Attributes:
        offset_ns: unix time minus monotonic time, nanoseconds.
    """

    offset_ns: int

    @classmethod
    def now(cls) -> Clock:
        """Return the clock with today's offset."""
        return cls(time.time_ns() - time.monotonic_ns())

    def unix_ns(self, monotonic_ns: int) -> int:
        """Return the unix time of a monotonic time, nanoseconds."""
        return monotonic_ns + self.offset_ns
