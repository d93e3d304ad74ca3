"""Decides whether a generation whose stream failed goes on at another router, and when. Sans-IO: clocks are passed in."""

from __future__ import annotations

from typing import Final

from octavo.errors import OctavoError, Overloaded, Unavailable

from octavo_client.routers import is_loss

RESUME_WAIT_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.1
_MAX_PAUSE_S: Final = 0.5
_ELSEWHERE: Final = frozenset({"draining", "no_engine"})


class Persistence:
    """Counts the tries of one generation.

    Before a router has accepted the request, each router is asked once, at once. Afterwards there is something to lose:
    routers are asked in turn until one goes on or `RESUME_WAIT_S` have passed, and that at most `max_resumes` times.
    """

    def __init__(self, *, num_routers: int, max_resumes: int) -> None:
        self.num_resumes = 0
        self._num_routers = num_routers
        self._max_resumes = max_resumes
        self._num_tries = 1
        self._give_up_at: float | None = None  # monotonic seconds; None: nobody is being looked for
        self._pause_s = _FIRST_PAUSE_S

    def accepted(self) -> None:
        """Note that a router goes on."""
        if self._give_up_at is not None:
            self.num_resumes += 1
        self._give_up_at = None
        self._num_tries = 1
        self._pause_s = _FIRST_PAUSE_S

    def pause_after(self, failure: OctavoError, *, was_accepted: bool, is_fresh: bool, now: float) -> float | None:
        """Return how many seconds to wait before the next router is asked; None if the failure is final.

        Args:
            failure: how the stream ended.
            was_accepted: whether its router had accepted the request.
            is_fresh: whether no router ever had.
            now: monotonic seconds.
        """
        if self._max_resumes == 0:
            return None
        if is_fresh:
            return self._fresh_pause(failure)
        if was_accepted:
            if not is_loss(failure) or self.num_resumes >= self._max_resumes:
                return None
            self._give_up_at = now + RESUME_WAIT_S
            return 0.0
        return self._search_pause(failure, now)

    def _fresh_pause(self, failure: OctavoError) -> float | None:
        is_matter_of_router = self._num_routers > 1 and failure.reason in _ELSEWHERE
        # One router alone gets a second try: it may be one of several processes behind one address.
        if not (is_loss(failure) or is_matter_of_router) or self._num_tries >= max(2, self._num_routers):
            return None
        self._num_tries += 1
        return 0.0

    def _search_pause(self, failure: OctavoError, now: float) -> float | None:
        can_pass = is_loss(failure) or isinstance(failure, Unavailable | Overloaded)
        if not can_pass or self._give_up_at is None or now >= self._give_up_at:
            return None
        self._num_tries += 1
        if self._num_tries <= self._num_routers:
            return 0.0
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _MAX_PAUSE_S)
        return pause_s
