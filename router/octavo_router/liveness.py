"""How far an engine can be relied on, by what its link says and when it says it. Sans-IO.

Silence makes an engine suspect, and longer silence ends its link. One that is heard but makes no step, although it has
requests, hangs: its front sees that sooner and says so, and if it does not, the limit here does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

SILENT: Final = "silent"
"""Reason for the end of a link: nothing at all is heard."""
STALLED: Final = "stalled"
"""Reason for the end of a link: the engine has requests and makes no step, and does not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimes:
    """When a link gives up, in seconds."""

    connect_s: float = 3.0  # from dialling to the welcome
    suspect_s: float = 1.5  # silence after which nothing new is sent there: fifteen heartbeats
    lost_s: float = 2.5  # silence after which its requests move
    stall_s: float = 30.0  # heartbeats that call the core well, but a core with requests makes no step
    max_backoff_s: float = 1.0


class LinkState(Enum):
    """How far an engine can be relied on."""

    UNREACHABLE = "unreachable"
    SERVING = "serving"
    DRAINING = "draining"
    SUSPECT = "suspect"


class Liveness:
    """Of one session. All times are monotonic seconds.

    Args:
        times: the limits.
        now: when the session began.
    """

    def __init__(self, times: LinkTimes, now: float) -> None:
        self.heard_at = now
        self.is_draining = False
        self._times = times
        self._is_stalled = False
        self._step_id = 0
        self._stepped_at = now

    def heard(self, now: float) -> None:
        """Note that a message came."""
        self.heard_at = now

    def stepped(self, step_id: int) -> None:
        """Note the step that the message tells of."""
        if step_id > self._step_id:
            self._step_id = step_id
            self._stepped_at = self.heard_at

    def beat(self, step_id: int, *, num_requests: int) -> None:
        """Note a heartbeat: an engine without requests makes no steps."""
        self.stepped(step_id)
        if num_requests == 0:
            self._stepped_at = self.heard_at

    def loaded(self, *, draining: bool, stalled: bool) -> None:
        """Note what the engine says of itself."""
        self.is_draining, self._is_stalled = draining, stalled

    def state(self, now: float) -> LinkState:
        """Return whether the engine can take requests."""
        if self._is_stalled or now - self.heard_at > self._times.suspect_s:
            return LinkState.SUSPECT
        return LinkState.DRAINING if self.is_draining else LinkState.SERVING

    def end(self, now: float) -> str | None:
        """Return why the link has to end, if it has to."""
        if now - self.heard_at > self._times.lost_s:
            return SILENT
        return STALLED if now - self._stepped_at > self._times.stall_s else None
