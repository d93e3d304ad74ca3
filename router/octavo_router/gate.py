"""Tells from the fleet's load what an engine has room for, and what a prompt would cost there."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from octavo_router.fair_queue import Ticket
from octavo_router.fleet import Engine, Fleet
from octavo_router.headroom import EngineRoom
from octavo_router.policy import DEFAULT_PREFILL_TOKENS_PER_S
from octavo_router.routing import Prompt


class Gate:
    """Open as long as some engine has room. Each look is at the load as it is then known.

    Args:
        fleet: the engines.
        queue_s: prefill work that may wait at an engine, seconds.
        clock: monotonic seconds.
    """

    def __init__(self, fleet: Fleet, *, queue_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._fleet = fleet
        self._queue_s = queue_s
        self._clock = clock

    @property
    def has_engines(self) -> bool:
        """Whether any engine takes requests."""
        return any(engine.is_serving for engine in self._fleet.engines)

    def is_open(self, ticket: Ticket, *, num_running: int) -> bool:
        """Tell whether an engine has room for a request now.

        Args:
            ticket: the request's.
            num_running: requests of this router that had their turn.
        """
        now = self._clock()
        rooms = []
        for engine in self._fleet.serving():
            room = room_of(engine, now)
            if self._has_room(room, ticket, share=1.0):  # then it has for any share, and the others need no look
                return True
            rooms.append(room)
        share = num_running / max(1, num_running, sum(room.num_requests for room in rooms))
        return any(self._has_room(room, ticket, share=share) for room in rooms)

    def uncached_tokens(self, prompt: Prompt) -> int:
        """Return the prompt tokens that the engine which has most of it cached would have to compute."""
        now = self._clock()
        most = 0
        for root, page_size in {(engine.page_hash_root, engine.page_size) for engine in self._fleet.serving()}:
            matched = self._fleet.directory.match(prompt.reusable(root, page_size), now)
            most = max(most, page_size * max(matched.values(), default=0))
        return max(1, len(prompt) - most)

    def _has_room(self, room: EngineRoom, ticket: Ticket, *, share: float) -> bool:
        return room.has_room(
            num_sequences=ticket.num_sequences, num_tokens=ticket.tokens, queue_s=self._queue_s, share=share
        )


def room_of(engine: Engine, now: float) -> EngineRoom:
    """Return what is known of an engine's room at a time (monotonic seconds)."""
    load, report, info = engine.load, engine.load.report, engine.info
    waiting_tokens = load.waiting_tokens(now)
    unreported_tokens = max(0, waiting_tokens - report.waiting_tokens)  # they have no pages yet
    return EngineRoom(
        waiting_tokens=waiting_tokens,
        prefill_tokens_per_s=report.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S,
        max_step_tokens=info.max_step_tokens,
        num_requests=load.num_running(now),
        max_sequences=info.max_sequences,
        pages_in_use=report.pages_in_use + -(-unreported_tokens // engine.page_size),
        num_pages=engine.num_pages,
        page_size=engine.page_size,
    )
