"""An engine's load as a router sees it: the newest report, and the work sent since. Sans-IO."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A report made while a placement was on its way does not include it yet. Longer, and placements count twice until the next
# report: hits are lost to engines that only look busier.
_REPORT_LAG_S = 0.02
# A placement whose engine never reported back is forgotten.
_PLACEMENT_TTL_S = 5.0
_MAX_PLACEMENTS = 10_000


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


class Placement:
    """One request sent to an engine by this router. Tells what of it the newest report cannot know yet."""

    __slots__ = ("at", "is_over", "is_prefilled", "is_reported", "num_sequences", "tokens")

    def __init__(self, *, tokens: int, num_sequences: int, at: float) -> None:
        self.tokens = tokens
        self.num_sequences = num_sequences
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

    def update(self, report: LoadReport, now: float) -> None:
        """Take a report that arrived at `now` (monotonic seconds); an older one than the newest is ignored."""
        if report.step_id < self.report.step_id:
            return
        self.report = report
        self._prefilled_tokens = self._ended_sequences = 0
        self._let_go(now - _REPORT_LAG_S)

    def hint(self, report: LoadReport, now: float) -> None:
        """Take a report that came by a slower way than heartbeats do: only one of a later step than the newest says more."""
        if report.step_id > self.report.step_id:
            self.update(report, now)

    def place(self, uncached_tokens: int, now: float, *, num_sequences: int = 1) -> Placement:
        """Note a request that was sent there at `now`."""
        placement = Placement(tokens=uncached_tokens, num_sequences=num_sequences, at=now)
        self._unreported.append(placement)
        return placement

    def prefilled(self, placement: Placement) -> None:
        """Note that a request gave its first token."""
        if not placement.is_prefilled:
            placement.is_prefilled = True
            self._prefilled_tokens += placement.tokens if placement.is_reported else 0

    def ended(self, placement: Placement) -> None:
        """Note that a request is over at this engine, however it ended."""
        if not placement.is_over:
            self.prefilled(placement)
            placement.is_over = True
            self._ended_sequences += placement.num_sequences if placement.is_reported else 0

    def waiting_tokens(self, now: float) -> int:
        """Prefill tokens ahead of a request that would arrive now."""
        tokens = max(0, self.report.waiting_tokens - self._prefilled_tokens)
        if self._unreported:
            self._let_go(now - _PLACEMENT_TTL_S)
            tokens += sum(placement.tokens for placement in self._unreported if not placement.is_prefilled)
        return tokens

    def num_running(self, now: float) -> int:
        """Sequences that a request which arrives now would share its steps with."""
        sequences = max(0, self.report.num_running - self._ended_sequences)
        if self._unreported:
            self._let_go(now - _PLACEMENT_TTL_S)
            sequences += sum(placement.num_sequences for placement in self._unreported if not placement.is_over)
        return sequences

    def _let_go(self, before: float) -> None:
        while self._unreported and self._unreported[0].at < before:
            self._unreported.popleft().is_reported = True
