"""Remembers when requests are of no use any more. Only the roster changes it."""

from __future__ import annotations

import heapq
from collections.abc import Container

_SLACK = 64


class Deadlines:
    """Deadlines of requests, the earliest first. Those of ended requests are dropped on the way."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def add(self, deadline_ns: int, key: int, live: Container[int], num_live: int) -> None:
        """Remember a deadline; `live` holds the keys of requests that have not ended, `num_live` of them."""
        heapq.heappush(self._heap, (deadline_ns, key))
        if len(self._heap) > 2 * num_live + _SLACK:  # most of them ended in time
            self._heap = [entry for entry in self._heap if entry[1] in live]
            heapq.heapify(self._heap)

    def next_ns(self, live: Container[int]) -> int | None:
        """Return the earliest deadline of a live request."""
        while self._heap and self._heap[0][1] not in live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ns: int) -> list[int]:
        """Return the keys whose deadline has come, each once; some may have ended."""
        due: list[int] = []
        while self._heap and self._heap[0][0] <= now_ns:
            due.append(heapq.heappop(self._heap)[1])
        return due
