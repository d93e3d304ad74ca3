"""One engine at one address, as this router reaches it: a session at a time, and a new one when it breaks.

The link's state is the engine's liveness: silence makes it suspect (nothing new is sent there), longer silence or a
broken stream loses its attempts, which then move to other engines. The link itself comes back by itself.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

import structlog
from octavo.errors import Unavailable
from octavo.v1 import engine_pb2

from octavo_router.attempt import Attempt
from octavo_router.liveness import LinkState, LinkTimes
from octavo_router.session import LinkSession
from octavo_router.step_columns import MALFORMED_STEP
from octavo_router.wakeups import Wakeups

_log = structlog.get_logger("octavo.router.link")

_FIRST_BACKOFF_S: Final = 0.05


class LinkListener(Protocol):
    """What a link tells its fleet."""

    def link_up(self, link: EngineLink, load: engine_pb2.Load) -> bool:
        """The engine said welcome; False refuses it."""

    def link_changed(self, link: EngineLink) -> None:
        """The link's state changed."""

    def link_down(self, link: EngineLink) -> None:
        """The stream is gone; its attempts are lost."""

    def link_load(self, link: EngineLink, load: engine_pb2.Load) -> None:
        """A load report came."""

    def link_pages(self, link: EngineLink, events: engine_pb2.PageEvents) -> None:
        """Page events came."""

    def link_snapshot(self, link: EngineLink, snapshot: engine_pb2.PageSnapshotResponse) -> None:
        """The snapshot that was asked for came."""


class EngineLink:
    """One engine at one address. `run` keeps the stream; everything else may be called on the same event loop."""

    def __init__(
        self, address: str, *, router_id: str, listener: LinkListener, times: LinkTimes, wakeups: Wakeups
    ) -> None:
        self.address = address
        self.info: engine_pb2.EngineInfo | None = None
        self._router_id = router_id
        self._listener = listener
        self._times = times
        self._wakeups = wakeups
        self._state = LinkState.UNREACHABLE
        self._session: LinkSession | None = None

    @property
    def state(self) -> LinkState:
        """Whether the engine can take requests."""
        return self._state

    @property
    def num_streams(self) -> int:
        """Requests of this router that run there."""
        return 0 if self._session is None else len(self._session.attempts)

    @property
    def age_s(self) -> float:
        """Age of the newest message, seconds; infinite without one."""
        return float("inf") if self._session is None else time.monotonic() - self._session.liveness.heard_at

    async def run(self) -> None:
        """Keep a stream to the engine until cancelled."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            session = LinkSession(
                self.address, router_id=self._router_id, owner=self, times=self._times, wakeups=self._wakeups
            )
            try:
                reason = await session.run()
            except Exception:  # noqa: BLE001  the outermost frame of this loop: a bug in one session must not end the link
                _log.exception("link_failed", address=self.address)
                reason = "internal"
            if session.was_welcome:
                backoff_s = _FIRST_BACKOFF_S
            if session.was_welcome or backoff_s == _FIRST_BACKOFF_S:  # else it was said before
                _log.info("link_down", address=self.address, reason=reason, was_welcome=session.was_welcome)
            is_hopeless = reason in {"refused", MALFORMED_STEP}  # for now: the engine may be replaced
            await asyncio.sleep(self._times.max_backoff_s if is_hopeless else backoff_s)
            backoff_s = min(backoff_s * 2, self._times.max_backoff_s)

    def submit(self, message: engine_pb2.LinkRequest, attempt: Attempt) -> int:
        """Send a `submit`; its stream id is set here and returned.

        Raises:
            Unavailable: the engine cannot take requests now.
        """
        if self._session is None or self._state is not LinkState.SERVING:
            raise Unavailable("engine_unavailable", "the engine cannot take requests now; try again", retry_after_s=1.0)
        return self._session.submit(message, attempt)

    def cancel(self, stream_id: int, attempt: Attempt) -> None:
        """Give a request up; what still comes for it is dropped. Does nothing for one that is over."""
        if self._session is not None:
            self._session.cancel(stream_id, attempt)

    def cancel_choice(self, stream_id: int, attempt: Attempt, choice: int) -> None:
        """Give one choice up; its end still comes. Does nothing for a request that is over."""
        if self._session is not None:
            self._session.cancel_choice(stream_id, attempt, choice)

    def credit(self, stream_id: int, attempt: Attempt, max_output_tokens: int) -> None:
        """Let a request run this far in all."""
        if self._session is not None:
            self._session.credit(stream_id, attempt, max_output_tokens)

    def hang_up(self) -> None:
        """End the stream: the engine process behind it has been replaced. Its requests move."""
        if self._session is not None:
            self._session.is_superseded = True

    def ask_snapshot(self) -> None:
        """Fetch the engine's page snapshot; the listener gets it."""
        if self._session is not None:
            self._session.snapshot_wanted.set()

    # What the session tells.

    def session_opened(self, session: LinkSession, welcome: engine_pb2.Welcome) -> bool:
        """Take the engine's facts and ask the fleet whether it wants it."""
        self.info = welcome.engine
        self._session = session
        if not self._listener.link_up(self, welcome.load):
            self._session = None
            return False
        session.judge()
        return True

    def session_judged(self, state: LinkState) -> None:
        """Pass a change of state on."""
        if state is not self._state:
            self._state = state
            self._listener.link_changed(self)

    def session_load(self, load: engine_pb2.Load) -> None:
        """Pass a load report on."""
        self._listener.link_load(self, load)

    def session_pages(self, events: engine_pb2.PageEvents) -> None:
        """Pass page events on."""
        self._listener.link_pages(self, events)

    def session_snapshot(self, snapshot: engine_pb2.PageSnapshotResponse) -> None:
        """Pass a snapshot on."""
        self._listener.link_snapshot(self, snapshot)

    def session_closed(self, session: LinkSession) -> None:
        """Forget the session; a refused one was never taken."""
        if self._session is session:
            self._session = None
            self.session_judged(LinkState.UNREACHABLE)
            self._listener.link_down(self)
