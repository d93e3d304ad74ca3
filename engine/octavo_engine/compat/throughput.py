"""Output tokens per second, as gateways want to know it: over the last seconds, and exactly 0 when there were none.

A gateway divides an engine's waiting tokens by it and takes 0 for "not known": an average that fades instead would make
an engine that has rested look slow.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 2.0


class Throughput:
    """Tokens of the last steps. Times are monotonic nanoseconds and never fall."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int]] = deque()
        self._num_tokens = 0

    def add(self, num_tokens: int, at_ns: int) -> None:
        """Count the tokens of a step that ended at a time."""
        self._steps.append((at_ns, num_tokens))
        self._num_tokens += num_tokens
        self._forget(at_ns)

    def tokens_per_s(self, now_ns: int) -> float:
        """Return the rate as of now."""
        self._forget(now_ns)
        return self._num_tokens / WINDOW_S

    def _forget(self, now_ns: int) -> None:
        oldest_ns = now_ns - int(WINDOW_S * 1e9)
        while self._steps and self._steps[0][0] <= oldest_ns:
            self._num_tokens -= self._steps.popleft()[1]
