"""A bounded queue of messages from the event loop to one gRPC stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from octavo.errors import OctavoError, Overloaded
from octavo.v1 import engine_pb2

MAX_MESSAGES: Final = 4096
"""Seconds of steps: a reader this far behind has stopped reading."""


class Outbox:
    """Messages that wait for one reader. `put` never waits; a reader that lags `max_messages` behind loses its stream."""

    def __init__(self, max_messages: int = MAX_MESSAGES) -> None:
        self._max_messages = max_messages
        self._messages: deque[engine_pb2.LinkResponse] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self._finishing = False
        self._error: OctavoError | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: engine_pb2.LinkResponse) -> None:
        """Add a message; one too many closes the outbox."""
        if len(self._messages) >= self._max_messages:
            self.close(Overloaded("link_not_drained", "the router does not read its link", retry_after_s=1.0))
        elif not self._closed and not self._finishing:
            self._messages.append(message)
            self._changed.set()

    def finish(self) -> None:
        """End the stream after what waits has gone."""
        self._finishing = True
        self._changed.set()

    def close(self, error: OctavoError | None = None) -> None:
        """End the stream, with an error if one is given; what waits is dropped."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._messages.clear()
            self._changed.set()

    async def messages(self) -> AsyncGenerator[engine_pb2.LinkResponse]:
        """Yield messages, oldest first, until the outbox is closed.

        Raises:
            OctavoError: the one given to `close`.
        """
        while not self._closed:
            if self._messages:
                yield self._messages.popleft()
            elif self._finishing:
                return
            else:
                self._changed.clear()
                await self._changed.wait()
        if self._error is not None:
            raise self._error
