"""Bounds the requests that a router holds, gives them their turns, and lets them end when it drains.

    enter  ->  Place.announce  ->  (tokenize)  ->  Place.ask  ->  Place.wait, if it must  ->  Place.runs  ->  leave

Refusing takes no time: nothing is awaited before an error is raised, unless the request already waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from octavo.errors import Overloaded, Unavailable

from octavo_router.fair_queue import ServiceClass, Ticket
from octavo_router.journal import Ending, Journal
from octavo_router.metrics import RouterMetrics
from octavo_router.pace import Spent
from octavo_router.routing import Prompt
from octavo_router.turns import Turns

_RETRY_AFTER_S = 0.5
_OWN_ENDINGS = frozenset({Ending.STOP, Ending.LENGTH})


class Admission:
    """Counts the requests that the router holds, waiting or running."""

    def __init__(self, turns: Turns, *, max_in_flight: int, metrics: RouterMetrics) -> None:
        self.turns = turns
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False

    @property
    def num_in_flight(self) -> int:
        """Requests now, those included that wait for their turn."""
        return self._num_in_flight

    @property
    def is_draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._is_draining

    @contextmanager
    def enter(self) -> Iterator[Place]:
        """Hold a place for one request.

        Raises:
            Overloaded: all places are taken.
            Unavailable: the router drains.
        """
        if self._is_draining:
            self._metrics.refusals.labels("draining").inc()
            raise Unavailable("draining", "this router is draining; use another one", retry_after_s=_RETRY_AFTER_S)
        if self._num_in_flight >= self._max_in_flight:
            self._metrics.refusals.labels("too_many_requests").inc()
            raise Overloaded(
                "too_many_requests",
                f"this router works on {self._max_in_flight} requests, its limit; try again",
                retry_after_s=_RETRY_AFTER_S,
                metadata={"limit": str(self._max_in_flight)},
            )
        self._num_in_flight += 1
        self._idle.clear()
        place = Place(self.turns)
        try:
            yield place
        finally:
            place.leave()
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._idle.set()

    async def drain(self, grace_s: float) -> int:
        """Take nothing new, wait until all requests have ended or the grace is over; return how many still run."""
        self._is_draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self._num_in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request asks for: `max_tokens` for each of its choices."""

    tenant: str
    service_class: ServiceClass
    deadline: float
    max_tokens: int
    num_choices: int


class Place:
    """One request in this router. A call that needs no engine does nothing with it."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._ticket: Ticket | None = None
        self._asked_at = 0.0
        self._num_prompt = 0
        self._journal: Journal | None = None

    @property
    def waited_s(self) -> float:
        """Seconds since it asked for its turn."""
        return self._turns.clock() - self._asked_at

    @property
    def expected_tokens(self) -> int:
        """What the request is expected to cost an engine."""
        return 0 if self._ticket is None else self._ticket.tokens

    def announce(self, demand: Demand) -> None:
        """Refuse a request before its prompt is tokenized, if it would wait in vain however short it is.

        Raises:
            Overloaded: the queue is full, or too slow for it.
        """
        if self._turns.queue:  # else nobody waits
            self._turns.refuse_hopeless(self._new_ticket(demand, num_prompt=1))

    def ask(self, demand: Demand, prompt: Prompt) -> bool:
        """Return whether the request has its turn at once; else `wait` is next.

        Raises:
            Overloaded: it would wait in vain.
        """
        assert self._ticket is None, "a request asks once"  # noqa: S101 - a bug in Octavo
        self._num_prompt = len(prompt)
        ticket = self._new_ticket(demand, num_prompt=self._turns.gate.uncached_tokens(prompt))
        self._asked_at = ticket.arrived_at
        self._ticket = ticket
        return self._turns.ask(ticket)

    def go_on(self, demand: Demand, prompt: Prompt) -> None:
        """Have the turn at once: the request began elsewhere, and its client has seen some of it."""
        self._num_prompt = len(prompt)
        self._ticket = self._new_ticket(demand, num_prompt=self._turns.gate.uncached_tokens(prompt))
        self._asked_at = self._ticket.arrived_at
        self._turns.start(self._ticket)

    async def wait(self) -> None:
        """Wait for the turn.

        Raises:
            Overloaded: others had to come first for too long.
            DeadlineExceeded: the deadline passed.
            Unavailable: no engine has served for too long.
        """
        if self._ticket is not None:
            await self._turns.wait(self._ticket)

    def runs(self, journal: Journal) -> None:
        """Note that the request was sent to an engine, and where its output is noted."""
        self._journal = journal
        if self._ticket is not None:
            self._turns.placed(self._ticket)

    def leave(self) -> None:
        """Give the place up, whatever became of the request."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        journal = self._journal
        if journal is None:
            self._turns.leave(ticket, Spent())
            return
        spent = Spent(
            tokens=self._num_prompt - journal.cached_tokens + journal.num_output_tokens,
            num_output=max(len(choice.token_ids) for choice in journal.choices),
            is_whole=all(choice.ending in _OWN_ENDINGS for choice in journal.choices),
        )
        self._turns.leave(ticket, spent)

    def _new_ticket(self, demand: Demand, *, num_prompt: int) -> Ticket:
        queue = self._turns.queue
        num_output = queue.expected_output(demand.max_tokens)
        return Ticket(
            tenant=queue.name_of(demand.tenant),
            service_class=demand.service_class,
            tokens=num_prompt + demand.num_choices * num_output,
            num_output=num_output,
            num_sequences=demand.num_choices,
            deadline=demand.deadline,
            arrived_at=self._turns.clock(),
        )
