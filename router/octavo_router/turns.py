"""Lets requests wait for their turns: the admission queue with futures and a timer. Used in one event loop.

A turn comes when it is this request's and some engine has room. Nobody tells that room has appeared, so that as long as
anyone waits the queue looks again every few milliseconds, and whenever a request has ended here. Engines have work for
longer than that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from octavo.errors import OctavoError, Unavailable

from octavo_router.admission_queue import AdmissionQueue, Dropped
from octavo_router.fair_queue import ServiceClass, Ticket
from octavo_router.metrics import RouterMetrics
from octavo_router.pace import Spent
from octavo_router.routing import Prompt

_TICK_S: Final = 0.01
# Who had a turn shows in an engine's load as soon as it is placed; until then the next one waits, but not for long.
_PLACING_S: Final = 0.05


class EngineGate(Protocol):
    """What turns depend on; see `octavo_router.gate.Gate`."""

    @property
    def has_engines(self) -> bool:
        """Whether any engine takes requests."""

    def is_open(self, ticket: Ticket, *, num_running: int) -> bool:
        """Tell whether an engine has room for a request now, with so many of this router's running."""

    def uncached_tokens(self, prompt: Prompt) -> int:
        """Return the prompt tokens that an engine would have to compute."""


class Turns:
    """Everyone who waits for a turn or has one.

    Args:
        queue: decides about the order.
        gate: tells whether an engine has room.
        metrics: told of waits and refusals.
        no_engine_s: how long the queue waits for an engine to come back.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        queue: AdmissionQueue,
        *,
        gate: EngineGate,
        metrics: RouterMetrics,
        no_engine_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = queue
        self.gate = gate
        self.clock = clock
        self._metrics = metrics
        # Looked up once: every request is counted.
        self._waits = {each: metrics.queue_wait.labels(each.value) for each in ServiceClass}
        self._queued = {each: metrics.queued.labels(each.value) for each in ServiceClass}
        self._no_engine_s = no_engine_s
        self._waiting: dict[Ticket, asyncio.Future[OctavoError | None]] = {}
        self._placing: tuple[Ticket, float] | None = None  # had its turn, and when
        self._tick: asyncio.TimerHandle | None = None
        self._engine_seen_at = 0.0

    def refuse_hopeless(self, ticket: Ticket) -> None:
        """Refuse a request that would have to wait in vain.

        Raises:
            Overloaded: the queue is full, or too slow for it.
        """
        if self.queue:
            try:
                self.queue.refuse_hopeless(ticket, self.clock())
            except OctavoError as error:
                self._metrics.refusals.labels(error.reason).inc()
                raise

    def ask(self, ticket: Ticket) -> bool:
        """Give a request its turn if it can have it at once; else it waits, and `wait` is next.

        Raises:
            Overloaded: it would wait in vain.
        """
        if not self.queue and self.queue.has_allowance(ticket) and self._is_open(ticket):
            self.start(ticket)
            return True
        self.refuse_hopeless(ticket)
        if not self.queue:
            self._engine_seen_at = self.clock()
        turn = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self._drop(self.queue.push(ticket, self.clock()))
        self._pump()
        return turn.done() and _raise_error(turn)

    def start(self, ticket: Ticket) -> None:
        """Give a request its turn, whoever waits."""
        now = self.clock()
        self.queue.start(ticket, now)
        self._waits[ticket.service_class].observe(now - ticket.arrived_at)

    async def wait(self, ticket: Ticket) -> None:
        """Wait for the turn of a request.

        Raises:
            Overloaded: others had to come first for too long.
            DeadlineExceeded: its deadline passed.
            Unavailable: no engine has served for too long.
        """
        turn = self._waiting.get(ticket)
        if turn is not None:
            await turn
            _raise_error(turn)

    def placed(self, ticket: Ticket) -> None:
        """Let the next one go: this one shows in its engine's load."""
        if self._placing is not None and self._placing[0] is ticket:
            self._placing = None
            self._pump()

    def leave(self, ticket: Ticket, spent: Spent) -> None:
        """Take note that a request is over, whether it waits or runs."""
        now = self.clock()
        self._waiting.pop(ticket, None)
        if self.queue.has_turn(ticket):
            self.queue.end(ticket, now, spent)
        else:
            self.queue.withdraw(ticket, now)
        if self._placing is not None and self._placing[0] is ticket:
            self._placing = None
        self._pump()

    def _pump(self) -> None:
        """Give turns as long as engines have room."""
        now = self.clock()
        self._drop(self.queue.expire(now))
        while self.queue and not self._is_placing(now):
            ticket, dropped = self.queue.next(now)
            self._drop(dropped)
            if ticket is None or not self._is_open(ticket):
                break
            self.start(ticket)
            self._placing = (ticket, now)
            self._settle(ticket, None)
        self._show()
        if self.queue and self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(_TICK_S, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        now = self.clock()
        if self.gate.has_engines:
            self._engine_seen_at = now
        elif now - self._engine_seen_at > self._no_engine_s:
            error = Unavailable("no_engine", "no engine can take the request now; try again", retry_after_s=1.0)
            for ticket in list(self._waiting):
                self.queue.withdraw(ticket, now)
                self._drop([Dropped(ticket, error)])
        self._pump()

    def _is_open(self, ticket: Ticket) -> bool:
        return self.gate.is_open(ticket, num_running=self.queue.num_running)

    def _is_placing(self, now: float) -> bool:
        return self._placing is not None and now - self._placing[1] < _PLACING_S

    def _drop(self, dropped: Iterable[Dropped]) -> None:
        for each in dropped:
            self._metrics.refusals.labels(each.error.reason).inc()
            self._settle(each.ticket, each.error)

    def _settle(self, ticket: Ticket, error: OctavoError | None) -> None:
        turn = self._waiting.get(ticket)
        if turn is not None and not turn.done():  # cancelled in this very moment: its request leaves by itself
            turn.set_result(error)

    def _show(self) -> None:
        for service_class, num_tickets in self.queue.num_queued.items():
            self._queued[service_class].set(num_tickets)


def _raise_error(turn: asyncio.Future[OctavoError | None]) -> bool:
    """Return True if a turn came, or raise what came in its place."""
    error = turn.result()
    if error is not None:
        raise error
    return True
