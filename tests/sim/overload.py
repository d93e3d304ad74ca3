"""More requests than engines can serve: the real admission queue, gate, routing and scheduler on a virtual clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from octavo.errors import OctavoError
from octavo_engine.front import HEARTBEAT_S
from octavo_router.admission_queue import AdmissionQueue, Dropped, QueueLimits
from octavo_router.fair_queue import ServiceClass, Ticket
from octavo_router.fleet import Fleet
from octavo_router.gate import Gate
from octavo_router.load import Placement, PlacementNote
from octavo_router.pace import Spent
from octavo_router.policy import Weights
from octavo_router.routing import Prompt
from octavo_router.turns import _TICK_S as TICK_S
from sim.clock import VirtualClock
from sim.engine import EngineShape, SimulatedEngine, Submission
from sim.router import KnownEngine, SimulatedRouter, by_cost

_LINK_S = 0.0005
_NOTE_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of a client; it is of no use if it has not ended `patience_s` after `at`. Times in seconds."""

    at: float
    prompt_len: int
    max_tokens: int
    patience_s: float
    tenant: str = ""
    service_class: ServiceClass = ServiceClass.INTERACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of it. `reason` is that of the error, if it did not run; `output_tokens` only what came in time."""

    ask: Ask
    turn_at: float | None
    ended_at: float
    output_tokens: int
    reason: str = ""

    @property
    def is_good(self) -> bool:
        """Whether all of the output came in time."""
        return self.output_tokens == self.ask.max_tokens

    @property
    def waited_s(self) -> float:
        """Time in the router's queue."""
        assert self.turn_at is not None
        return self.turn_at - self.ask.at


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleetwide:
    """Who takes part. `queue_s` is the gate's; without `keeps_notes` routers see each other in load reports only."""

    num_routers: int = 1
    num_engines: int = 2
    shape: EngineShape = field(default_factory=EngineShape)
    queue_s: float = 0.15
    limits: QueueLimits = field(default_factory=QueueLimits)
    keeps_notes: bool = True
    always_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of `seconds`; the first of them, until `warm_at`, count for nothing."""

    answers: Sequence[Answer]
    warm_at: float
    seconds: float

    @property
    def goodput(self) -> float:
        """Output tokens per second of the requests that ended in time."""
        return self._per_s(each.output_tokens for each in self.answers if each.is_good and self._counts(each.ended_at))

    def goodput_of(self, tenant: str) -> float:
        """The same for one tenant."""
        return self._per_s(
            each.output_tokens
            for each in self.answers
            if each.is_good and self._counts(each.ended_at) and each.ask.tenant == tenant
        )

    @property
    def reasons(self) -> Counter[str]:
        """Why requests did not run."""
        return Counter(each.reason for each in self.answers if each.reason)

    def waits(self, tenant: str) -> list[float]:
        """Return the waits of a tenant's requests that had a turn, seconds."""
        return [
            each.waited_s
            for each in self.answers
            if each.ask.tenant == tenant and each.turn_at is not None and self._counts(each.ask.at)
        ]

    def _counts(self, at: float) -> bool:
        return self.warm_at <= at < self.seconds

    def _per_s(self, tokens: Iterable[int]) -> float:
        return sum(tokens) / (self.seconds - self.warm_at)


class Overload:
    """One run. Requests reach the routers in turn."""

    def __init__(self, fleet: Fleetwide, asks: Sequence[Ask], *, seconds: float, warm_at: float = 0.0, seed: int = 0):
        self.clock = VirtualClock()
        self.fleet = fleet
        self.answers: list[Answer] = []
        self._seconds, self._warm_at = seconds, warm_at
        self._random = random.Random(seed)
        self.desks = [_Desk(self, number) for number in range(fleet.num_routers)]
        self.engines: dict[str, SimulatedEngine] = {}
        for number in range(fleet.num_engines):
            self._join(f"engine-{number}")
        for number, ask in enumerate(asks):
            self.clock.after(ask.at, partial(self.desks[number % len(self.desks)].take, ask))

    def run(self) -> Outcome:
        """Run for the time given."""
        self.clock.run(lambda: self.clock.now >= self._seconds)
        return Outcome(answers=tuple(self.answers), warm_at=self._warm_at, seconds=self._seconds)

    def note(self, number: int, note: PlacementNote) -> None:
        """Spread a placement note."""
        for desk in self.desks if self.fleet.keeps_notes else ():
            if desk.router.number != number:
                self.clock.after(_NOTE_S, partial(desk.router.take_note, note))

    def text(self, length: int) -> list[int]:
        """Return a prompt that shares nothing."""
        start = self._random.randrange(1 << 30)
        return list(range(start, start + length))

    def _join(self, engine_id: str) -> None:
        engine = SimulatedEngine(engine_id, self.fleet.shape, self.clock, tell_pages=lambda _change: None)
        self.engines[engine_id] = engine
        for desk in self.desks:
            desk.router.join(engine.info)
        self.clock.after(self._random.uniform(0, HEARTBEAT_S), lambda: self._beat(engine))

    def _beat(self, engine: SimulatedEngine) -> None:
        report = engine.load
        for desk in self.desks:
            self.clock.after(_LINK_S, partial(desk.router.take_load, engine.engine_id, report))
        self.clock.after(HEARTBEAT_S, lambda: self._beat(engine))


class _Desk:
    """A router with its queue: what `octavo_router.turns` does, on the virtual clock."""

    def __init__(self, run: Overload, number: int) -> None:
        self._run = run
        self.router = SimulatedRouter(
            number, run.clock, choose=by_cost, weights=Weights(), note=partial(run.note, number)
        )
        self.queue = AdmissionQueue(run.fleet.limits)
        self._gate = Gate(
            cast("Fleet", self.router._fleet), queue_s=run.fleet.queue_s, clock=lambda: self._run.clock.now
        )
        self._asks: dict[Ticket, tuple[Ask, Prompt]] = {}
        self._is_ticking = False

    def take(self, ask: Ask) -> None:
        clock = self._run.clock
        prompt = Prompt(self._run.text(ask.prompt_len))
        num_output = self.queue.expected_output(ask.max_tokens)
        ticket = Ticket(
            tenant=ask.tenant,
            service_class=ask.service_class,
            tokens=self._gate.uncached_tokens(prompt) + num_output,
            num_output=num_output,
            num_sequences=1,
            deadline=ask.at + ask.patience_s,
            arrived_at=clock.now,
        )
        self._asks[ticket] = (ask, prompt)
        if self._is_open(ticket) and not self.queue and self.queue.has_allowance(ticket):
            self._start(ticket)
            return
        try:
            self.queue.refuse_hopeless(ticket, clock.now)
        except OctavoError as error:
            self._drop([Dropped(ticket, error)])
            return
        self._drop(self.queue.push(ticket, clock.now))
        self._pump()

    def _pump(self) -> None:
        now = self._run.clock.now
        self._drop(self.queue.expire(now))
        while self.queue:
            ticket, dropped = self.queue.next(now)
            self._drop(dropped)
            if ticket is None or not self._is_open(ticket):
                break
            self._start(ticket)
        if self.queue and not self._is_ticking:
            self._is_ticking = True
            self._run.clock.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        self._pump()

    def _is_open(self, ticket: Ticket) -> bool:
        return self._run.fleet.always_open or self._gate.is_open(ticket, num_running=self.queue.num_running)

    def _drop(self, dropped: Iterable[Dropped]) -> None:
        for each in dropped:
            ask, _ = self._asks.pop(each.ticket)
            now = self._run.clock.now
            self._run.answers.append(
                Answer(ask=ask, turn_at=None, ended_at=now, output_tokens=0, reason=each.error.reason)
            )

    def _start(self, ticket: Ticket) -> None:
        clock = self._run.clock
        self.queue.start(ticket, clock.now)
        ask, prompt = self._asks.pop(ticket)
        known, placement = self.router.route(prompt)
        submission = Submission(
            list(prompt.token_ids),
            ask.max_tokens,
            placement=placement,
            on_first_token=lambda: known.load.prefilled(placement),
            on_end=lambda: self._end(ticket, ask, submission, known, placement, turn_at),
            deadline=ticket.deadline,
        )
        turn_at = clock.now
        engine = self._run.engines[known.engine_id]
        clock.after(_LINK_S, lambda: engine.submit(submission))

    def _end(
        self, ticket: Ticket, ask: Ask, submission: Submission, known: KnownEngine, placement: Placement, turn_at: float
    ) -> None:
        now = self._run.clock.now
        known.load.ended(placement)
        num_output = len(submission.output)
        spent = Spent(tokens=ask.prompt_len + num_output, num_output=num_output, is_whole=num_output == ask.max_tokens)
        self.queue.end(ticket, now, spent)
        self._run.answers.append(Answer(ask=ask, turn_at=turn_at, ended_at=now, output_tokens=num_output))
        self._pump()


def steady(
    *,
    per_s: float,
    seconds: float,
    seed: int = 1,
    prompt: tuple[int, int] = (100, 400),
    output: tuple[int, int] = (20, 60),
    patience_s: float = 5.0,
    tenant: str = "",
    service_class: ServiceClass = ServiceClass.INTERACTIVE,
    starts_at: float = 0.0,
) -> list[Ask]:
    """Return Poisson arrivals of requests whose lengths are even between two bounds."""
    chance = random.Random(seed)
    asks, at = [], starts_at
    while (at := at + chance.expovariate(per_s)) < seconds:
        asks.append(
            Ask(
                at=at,
                prompt_len=chance.randint(*prompt),
                max_tokens=chance.randint(*output),
                patience_s=patience_s,
                tenant=tenant,
                service_class=service_class,
            )
        )
    return asks


def together(*streams: Sequence[Ask]) -> list[Ask]:
    """Return several streams of arrivals as one."""
    return sorted((ask for stream in streams for ask in stream), key=lambda ask: ask.at)
