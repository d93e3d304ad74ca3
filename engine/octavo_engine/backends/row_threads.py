"""Shares the rows of one operation between CPU threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class RowThreads:
    """Calls ``work(first, last)`` on equal ranges of rows, one per thread; the caller's thread takes the first range.

    `work` must release the GIL and treat each row alone, so that the split cannot change a result.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1, "octavo-rows") if num_threads > 1 else None

    def run(self, work: Callable[[int, int], None], num_rows: int, least_rows: int) -> None:
        """Run `work` over [0, num_rows), using another thread only for each further `least_rows` rows."""
        parts = min(self._num_threads, num_rows // least_rows)
        if self._pool is None or parts < 2:
            work(0, num_rows)
            return
        bounds = [num_rows * part // parts for part in range(parts + 1)]
        others = [self._pool.submit(work, bounds[part], bounds[part + 1]) for part in range(1, parts)]
        work(0, bounds[1])
        for other in others:
            other.result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()
