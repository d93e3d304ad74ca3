"""Shares one operation between CPU threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

Work = Callable[[int, int], None]

_PARTS_PER_THREAD: Final = 4
"""More parts than threads: a thread that the system woke late, or took off its core, leaves its parts to the others."""


class RowThreads:
    """Calls ``work(first, last)`` on parts of a range until all are done; every thread takes the next part that is left.

    `work` must release the GIL and treat each item of a range alone, so that the split cannot change a result. The caller
    never waits for a helper that has not started: on a machine whose cores are busy with other processes it does the work
    itself. Handing work over costs some ten microseconds, a fraction of what an executor needs.
    """

    def __init__(self, num_threads: int) -> None:
        self._helpers = [_Helper(index) for index in range(1, num_threads)]

    def run(self, work: Work, num_items: int, least_items: int) -> None:
        """Run `work` over [0, num_items), in parts of at least `least_items`."""
        num_parts = min(_PARTS_PER_THREAD * (1 + len(self._helpers)), num_items // least_items)
        if not self._helpers or num_parts < 2:
            work(0, num_items)
            return
        bounds = [num_items * part // num_parts for part in range(num_parts + 1)]
        job = _Job(work, iter(list(pairwise(bounds))))
        for helper in self._helpers[: num_parts - 1]:
            helper.offer(job)
        job.take_parts()
        for helper in self._helpers:
            helper.wait()
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """Stop the threads."""
        for helper in self._helpers:
            helper.close()


class _Job:
    """One operation. Taking the next part off the iterator is atomic under the GIL."""

    def __init__(self, work: Work, parts: Iterator[tuple[int, int]]) -> None:
        self._work = work
        self._parts = parts
        self.error: BaseException | None = None

    def take_parts(self) -> None:
        try:
            for first, last in self._parts:
                self._work(first, last)
        except BaseException as error:  # noqa: BLE001  # `run` raises it in the caller's thread
            self.error = error


class _Helper:
    def __init__(self, index: int) -> None:
        self._offered, self._working = threading.Lock(), threading.Lock()
        self._offered.acquire()
        self._job: _Job | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name=f"octavo-rows-{index}", daemon=True)
        self._thread.start()

    def offer(self, job: _Job | None) -> None:
        """Wake the helper for a job; if it has not woken for the last one yet, it finds this one instead."""
        self._job = job
        if self._offered.locked():  # nobody else releases it
            self._offered.release()

    def wait(self) -> None:
        """Wait until the helper is not in the middle of a part."""
        with self._working:
            self._job = None

    def close(self) -> None:
        self._is_closed = True
        self.offer(None)
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self._offered.acquire()
            if self._is_closed:
                return
            with self._working:
                job = self._job
                if job is not None:
                    job.take_parts()
