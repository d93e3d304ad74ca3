"""Wakes the tasks of streams in turns, so that a busy router sends larger messages rather than later ones.

    tokens come -> their streams are due -> a turn: each due stream sends all that it has -> a pause -> the next turn

A message costs about the same with one token or with ten. The pause after a turn is in proportion to what the turn took:
with time to spare there is none that anybody could notice; a busy router reads on meanwhile, and finds more tokens for
each stream in the next turn. There is nothing to set, and nothing is queued: tokens wait in the journals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final, Protocol

# The part of a turn's time that is kept free for reading after it.
_PAUSE_SHARE: Final = 0.5
_MAX_PAUSE_S: Final = 0.05
_TIMER_S: Final = 0.001  # what the event loop's timers can tell apart


class Sleeper(Protocol):
    """What has a task to wake."""

    def wake(self) -> None:
        """Tell the task that there is something new."""


class Wakeups:
    """The turns of one event loop."""

    def __init__(self) -> None:
        self._due: set[Sleeper] = set()
        self._is_planned = False
        self._rests_until = 0.0  # monotonic seconds

    def soon(self, sleepers: Collection[Sleeper]) -> None:
        """Wake these in the next turn."""
        self._due.update(sleepers)
        if self._due and not self._is_planned:
            self._is_planned = True
            self._plan()

    def _plan(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._rests_until - time.monotonic()
        if pause_s < _TIMER_S:  # too short to wait for: it is added to the next one
            loop.call_soon(self._take_turn)
        else:
            loop.call_later(pause_s, self._take_turn)

    def _take_turn(self) -> None:
        began_at = time.monotonic()
        due, self._due = self._due, set()
        for sleeper in due:
            sleeper.wake()
        # A loop is first in, first out: this is called when all that were woken have had their turn.
        asyncio.get_running_loop().call_soon(self._end_turn, began_at)

    def _end_turn(self, began_at: float) -> None:
        now = time.monotonic()
        owed_s = max(0.0, self._rests_until - began_at)
        self._rests_until = now + min(owed_s + (now - began_at) * _PAUSE_SHARE, _MAX_PAUSE_S)
        self._is_planned = bool(self._due)
        if self._due:
            self._plan()
