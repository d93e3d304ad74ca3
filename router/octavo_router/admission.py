"""Bounds the requests that a router works on at once, and lets them end when it drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from octavo.errors import Overloaded, Unavailable

_RETRY_AFTER_S = 0.5


class Admission:
    """Counts requests in flight. Rejecting takes no time: nothing waits here."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False

    @property
    def num_in_flight(self) -> int:
        """Requests now."""
        return self._num_in_flight

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_draining

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for one request.

        Raises:
            Overloaded: all places are taken.
            Unavailable: the router drains.
        """
        if self._is_draining:
            raise Unavailable("draining", "this router is draining; use another one", retry_after_s=_RETRY_AFTER_S)
        if self._num_in_flight >= self._max_in_flight:
            raise Overloaded(
                "too_many_requests",
                f"this router works on {self._max_in_flight} requests, its limit; try again",
                retry_after_s=_RETRY_AFTER_S,
                metadata={"limit": str(self._max_in_flight)},
            )
        self._num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._idle.set()

    async def drain(self, grace_s: float) -> int:
        """Take nothing new, wait until all requests have ended or the grace is over; return how many still run."""
        self._is_draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self._num_in_flight
