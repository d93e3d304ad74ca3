"""An engine's load as a router sees it: the newest report, and the work sent since. Sans-IO.

Every request bears a name, its router's and the stream id there, and a report says up to which stream id it counts each
router's. So a request counts once, by the report or by what was noted when it was sent, whichever way the two cross.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# A placement that no report ever counts is forgotten: its request never came there.
_PLACEMENT_TTL_S = 5.0
_MAX_PLACEMENTS = 10_000
RECENT_S = 60.0
"""What was sent to an engine so long ago weighs 1/e of what is sent now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Load of an engine at one moment, as in octavo.v1.Load; a rate of 0 is not yet known."""

    num_waiting: int = 0
    waiting_tokens: int = 0
    num_running: int = 0
    pages_in_use: int = 0
    pages_cached: int = 0
    pages_free: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_s_per_sequence: float = 0.0
    step_id: int = 0
    draining: bool = False
    warming: bool = False
    taken: Mapping[str, int] = field(default_factory=dict)  # router id -> last stream id that it counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementNote:
    """What routers tell each other of a request that one of them sent to an engine.

    Attributes:
        engine_id: the engine.
        router_id: who sent it.
        stream_id: its number on that router's link; they rise.
        tokens: prompt tokens that the engine has to compute for it.
        pages: short hashes of the pages that it will leave there, beyond those that were there.
        num_sequences: its choices.
        output_tokens: what all of them are expected to give.
    """

    engine_id: str
    router_id: str
    stream_id: int
    tokens: int
    pages: Sequence[int] = ()
    num_sequences: int = 1
    output_tokens: int = 0


class Placement:
    """One request at an engine, of this router or another, noted at a time in monotonic seconds."""

    __slots__ = ("at", "is_over", "is_prefilled", "is_reported", "num_sequences", "router_id", "stream_id", "tokens")

    def __init__(self, note: PlacementNote, at: float) -> None:
        self.router_id = note.router_id
        self.stream_id = note.stream_id
        self.tokens = note.tokens
        self.num_sequences = note.num_sequences
        self.at = at
        self.is_reported = False  # the engine's newest report counts it
        self.is_prefilled = False
        self.is_over = False


class EngineLoad:
    """Newest report of one engine process, corrected by what this router has seen and sent since."""

    def __init__(self) -> None:
        self.report = LoadReport()
        self._unreported: deque[Placement] = deque(maxlen=_MAX_PLACEMENTS)
        self._prefilled_tokens = 0  # of reported placements, since the report
        self._ended_sequences = 0
        self._recent_tokens = self._recent_output = 0.0  # as of `_recent_at`
        self._recent_at = 0.0

    def update(self, report: LoadReport) -> None:
        """Take a report; an older one than the newest is ignored."""
        if report.step_id < self.report.step_id:
            return
        self.report = report
        self._prefilled_tokens = self._ended_sequences = 0
        if self._unreported:
            placements, self._unreported = self._unreported, deque(maxlen=_MAX_PLACEMENTS)
            for placement in placements:
                self._add(placement)

    def hint(self, report: LoadReport) -> None:
        """Take a report that came by a slower way than heartbeats do: only one of a later step than the newest says more."""
        if report.step_id > self.report.step_id:
            self.update(report)

    def place(self, note: PlacementNote, now: float) -> Placement:
        """Take note of a request that was sent there, even if a report that counts it was faster."""
        placement = Placement(note, now)
        self._add(placement)
        tokens, output = self.recent(now)
        self._recent_tokens, self._recent_output = tokens + note.tokens, output + note.output_tokens
        self._recent_at = now
        return placement

    def recent(self, now: float) -> tuple[float, float]:
        """Tokens that were sent there, of prompts to compute and expected of outputs; the older the less they count."""
        fading = math.exp((self._recent_at - now) / RECENT_S) if self._recent_at else 1.0
        return self._recent_tokens * fading, self._recent_output * fading

    def prefilled(self, placement: Placement) -> None:
        """Note that a request gave its first token."""
        if not placement.is_prefilled:
            placement.is_prefilled = True
            self._prefilled_tokens += placement.tokens if placement.is_reported else 0

    def ended(self, placement: Placement) -> None:
        """Note that a request is over at this engine, however it ended."""
        if not placement.is_over:
            # A report counts a request that waits once, and one that runs by its sequences.
            counted = placement.num_sequences if placement.is_prefilled else 1
            self.prefilled(placement)
            placement.is_over = True
            self._ended_sequences += counted if placement.is_reported else 0

    def waiting_tokens(self, now: float) -> int:
        """Prefill tokens ahead of a request that would arrive now."""
        tokens = max(0, self.report.waiting_tokens - self._prefilled_tokens)
        if self._unreported:
            self._forget(now - _PLACEMENT_TTL_S)
            tokens += sum(placement.tokens for placement in self._unreported if not placement.is_prefilled)
        return tokens

    def num_running(self, now: float) -> int:
        """Sequences that a request which arrives now will share its steps with, also those that wait as yet."""
        sequences = max(0, self.report.num_running + self.report.num_waiting - self._ended_sequences)
        if self._unreported:
            self._forget(now - _PLACEMENT_TTL_S)
            sequences += sum(placement.num_sequences for placement in self._unreported if not placement.is_over)
        return sequences

    def _add(self, placement: Placement) -> None:
        placement.is_reported = placement.stream_id <= self.report.taken.get(placement.router_id, 0)
        if not placement.is_reported:
            self._unreported.append(placement)

    def _forget(self, before: float) -> None:
        while self._unreported and self._unreported[0].at < before:
            self._unreported.popleft().is_reported = True
