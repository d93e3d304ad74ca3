"""Shares one operation between CPU threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

Work = Callable[[int, int], None]


class RowThreads:
    """Calls ``work(first, last)`` on equal ranges, one per thread; the caller's thread takes the first range.

    `work` must release the GIL and treat each item of a range alone, so that the split cannot change a result. A helper is
    woken by a lock: handing work over costs some ten microseconds, a fraction of what an executor needs.
    """

    def __init__(self, num_threads: int) -> None:
        self._helpers = [_Helper(index) for index in range(1, num_threads)]

    def run(self, work: Work, num_items: int, least_items: int) -> None:
        """Run `work` over [0, num_items), using another thread only for each further `least_items`."""
        parts = min(1 + len(self._helpers), num_items // least_items)
        if parts < 2:
            work(0, num_items)
            return
        bounds = [num_items * part // parts for part in range(parts + 1)]
        helpers = self._helpers[: parts - 1]
        for helper, first, last in zip(helpers, bounds[1:], bounds[2:], strict=False):
            helper.start(work, first, last)
        try:
            work(0, bounds[1])
        finally:
            for helper in helpers:
                helper.finish()

    def close(self) -> None:
        """Stop the threads."""
        for helper in self._helpers:
            helper.close()


class _Helper:
    def __init__(self, index: int) -> None:
        self._begun, self._done = threading.Lock(), threading.Lock()
        self._begun.acquire()
        self._done.acquire()
        self._task: tuple[Work, int, int] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name=f"octavo-rows-{index}", daemon=True)
        self._thread.start()

    def start(self, work: Work, first: int, last: int) -> None:
        self._task = (work, first, last)
        self._begun.release()

    def finish(self) -> None:
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        self._task = None
        self._begun.release()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self._begun.acquire()
            if self._task is None:
                return
            work, first, last = self._task
            try:
                work(first, last)
            except BaseException as error:  # noqa: BLE001  # the outermost frame of a thread: `finish` raises it
                self._error = error
            self._done.release()
