"""Finds stop strings in text that arrives in pieces, and never lets a part of one out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Text that may leave, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopStrings:
    """Matches one choice's text against its stop strings.

    The first stop string to become complete ends the text; of several that end at the same character the longest wins.
    The outcome does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""

    def feed(self, piece: str) -> Matched:
        """Take the next piece; return what can no longer become part of a stop string."""
        if not self._stops:
            return Matched(text=piece)
        text = self._held + piece
        found = self._first(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return Matched(text=text[:start], stop=stop)
        keep = self._partial_len(text)
        self._held = text[len(text) - keep :]
        return Matched(text=text[: len(text) - keep])

    def flush(self) -> str:
        """Return the text held back: nothing follows, so it is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _partial_len(self, text: str) -> int:
        """Return the length of the longest end of `text` that a stop string begins with."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
