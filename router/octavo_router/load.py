"""An engine's load as a router sees it: the newest report, and the work sent since. Sans-IO."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A report made while a placement was on its way does not include it yet.
_REPORT_LAG_S = 0.05
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


class EngineLoad:
    """Newest report of one engine process plus what all routers have sent there since."""

    def __init__(self) -> None:
        self.report = LoadReport()
        self._placements: deque[tuple[float, int]] = deque(maxlen=_MAX_PLACEMENTS)

    def update(self, report: LoadReport, now: float) -> None:
        """Take a report that arrived at `now` (monotonic seconds); an older one than the newest is ignored."""
        if report.step_id < self.report.step_id:
            return
        self.report = report
        self._forget(now - _REPORT_LAG_S)

    def place(self, uncached_tokens: int, now: float) -> None:
        """Note a request that was sent there at `now`."""
        self._placements.append((now, uncached_tokens))

    def waiting_tokens(self, now: float) -> int:
        """Prefill tokens ahead of a request that would arrive now."""
        self._forget(now - _PLACEMENT_TTL_S)
        return self.report.waiting_tokens + sum(tokens for _, tokens in self._placements)

    def num_running(self, now: float) -> int:
        """Sequences that a request which arrives now would share its steps with."""
        self._forget(now - _PLACEMENT_TTL_S)
        return self.report.num_running + len(self._placements)

    def _forget(self, before: float) -> None:
        while self._placements and self._placements[0][0] < before:
            self._placements.popleft()
