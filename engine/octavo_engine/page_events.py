"""Tells routers which prefix pages this engine holds: net changes, numbered, with a digest of the whole set."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from octavo.v1 import engine_pb2

from octavo_engine.messages import StepFrame

MAX_HASHES_PER_MESSAGE: Final = 65_536
"""Half a mebibyte: far below gRPC's limit for one message."""
BATCH_S: Final = 0.02
"""Changes wait this long for others, so that a burst of steps makes one message."""


class ResidentPages:
    """The set of resident short hashes, and what changed in it since the last message.

    The core reports per page; two pages whose full hashes share their first 8 bytes are one member here, so that a
    router's set and its digest agree with this one.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._sequence = 0
        self._digest = 0
        self._pages: Counter[int] = Counter()
        self._told: set[int] = set()
        self._changed: dict[int, None] = {}
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pages)

    def apply(self, stored: list[int], evicted: list[int]) -> None:
        """Take pages that became reusable, then pages that were evicted."""
        for page in stored:
            self._pages[page] += 1
            self._changed[page] = None
        for page in evicted:
            if self._pages[page] <= 1:
                del self._pages[page]
            else:
                self._pages[page] -= 1
            self._changed[page] = None
        self.changed.set()

    def take_step(self, frame: StepFrame) -> None:
        """Take the changes of one step."""
        if frame.pages_stored or frame.pages_evicted:
            self.apply(frame.pages_stored, frame.pages_evicted)

    @property
    def has_changes(self) -> bool:
        """Whether `take_message` has anything to say."""
        return bool(self._changed)

    def take_message(self) -> engine_pb2.PageEvents | None:
        """Return the next message, the net changes since the last one or the first part of them; None if there are none."""
        stored: list[int] = []
        evicted: list[int] = []
        for page in list(self._changed)[:MAX_HASHES_PER_MESSAGE]:
            del self._changed[page]
            if page in self._pages and page not in self._told:
                stored.append(page)
                self._told.add(page)
                self._digest ^= page
            elif page not in self._pages and page in self._told:
                evicted.append(page)
                self._told.remove(page)
                self._digest ^= page
        if not stored and not evicted:
            return None
        self._sequence += 1
        return engine_pb2.PageEvents(
            epoch=self._epoch,
            sequence=self._sequence,
            stored=stored,
            evicted=evicted,
            digest=self._digest,
            num_resident=len(self._told),
        )

    def snapshot(self) -> engine_pb2.PageSnapshotResponse:
        """Return every hash told so far; what has changed since follows in later messages."""
        return engine_pb2.PageSnapshotResponse(
            epoch=self._epoch, sequence=self._sequence, hashes=self._told, digest=self._digest
        )


async def publish(pages: ResidentPages, tell: Callable[[engine_pb2.PageEvents], None]) -> None:
    """Tell of changes until cancelled, those of `BATCH_S` in one message."""
    while True:
        await pages.changed.wait()
        pages.changed.clear()
        await asyncio.sleep(BATCH_S)
        while pages.has_changes:
            message = pages.take_message()
            if message is not None:
                tell(message)
