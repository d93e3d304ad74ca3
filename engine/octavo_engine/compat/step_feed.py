"""What every step tells gateways: pages that came and went, numbered, and the rate of output."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from octavo_engine.compat.page_ledger import Page, PageChange, PageLedger
from octavo_engine.compat.throughput import Throughput
from octavo_engine.messages import StepFrame

FIRST_SEQUENCE: Final = 1 << 32
"""Number of the state before the first batch. The chunks of a snapshot end at the number of its state, so there must be
room for as many below it."""
MAX_BATCHES: Final = 1024
"""Batches that may wait for one subscriber; one that lags further behind must subscribe again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One numbered change."""

    sequence: int
    change: PageChange


class Subscription:
    """Batches that wait for one subscriber.

    Attributes:
        first_sequence: number of the state that its snapshot shows; batches go on after it.
        snapshot: the told pages at that number.
        lags: whether batches were lost because it did not read.
    """

    def __init__(self, first_sequence: int, snapshot: list[Page]) -> None:
        self.first_sequence = first_sequence
        self.snapshot = snapshot
        self.lags = False
        self._batches: deque[Batch] = deque()
        self._changed = asyncio.Event()

    def put(self, batch: Batch) -> None:
        """Add a batch."""
        if len(self._batches) >= MAX_BATCHES:
            self.lags = True
            self._batches.clear()
        if not self.lags:
            self._batches.append(batch)
        self._changed.set()

    def take(self) -> list[Batch]:
        """Return the batches that wait."""
        self._changed.clear()
        batches = list(self._batches)
        self._batches.clear()
        return batches

    async def changed(self, timeout_s: float) -> None:
        """Wait for a batch, at most this long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass


class StepFeed:
    """Follows the steps of one engine on behalf of its subscribers. One event loop uses it."""

    def __init__(self) -> None:
        self.throughput = Throughput()
        self._ledger = PageLedger()
        self._sequence = FIRST_SEQUENCE
        self._subscriptions: set[Subscription] = set()

    def take_step(self, frame: StepFrame) -> None:
        """Take the results of one step."""
        if frame.token_ids:
            self.throughput.add(len(frame.token_ids), frame.ended_ns)
        if frame.pages_stored or frame.pages_evicted:
            self._publish(self._ledger.apply(frame.pages_stored, frame.pages_evicted))

    def note(self, pages: Iterable[Page]) -> None:
        """Remember the tokens of pages that a request fills, parents first."""
        self._publish(self._ledger.note(pages))

    @contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """Keep a subscription while it lasts."""
        subscription = Subscription(self._sequence, self._ledger.told())
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def _publish(self, change: PageChange) -> None:
        if change:
            self._sequence += 1
            batch = Batch(self._sequence, change)
            for subscription in self._subscriptions:
                subscription.put(batch)
