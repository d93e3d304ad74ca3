"""Routers and engines on one virtual clock, with the delays between them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from octavo_engine.front import HEARTBEAT_S
from octavo_router.bus import _MAX_NOTE_PAGES as MAX_NOTE_PAGES
from octavo_router.directory import PageChange
from octavo_router.load import LoadReport, Placement, PlacementNote
from octavo_router.policy import Weights
from octavo_router.routing import Prompt
from sim.clock import VirtualClock
from sim.engine import PAGE_SIZE, ROOT, EngineShape, SimulatedEngine, Submission
from sim.results import Done, Result
from sim.router import Choose, KnownEngine, SimulatedRouter, by_cost
from sim.workloads import Job, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Seconds that messages take. Batching of page events (20 ms) and the heartbeat's period come on top.

    `omniscient`: nothing takes time, and every decision sees each engine's load as it is.
    """

    link_s: float = 0.0005
    pages_s: float = 0.002
    note_s: float = 0.001
    snapshot_s: float = 0.02
    heartbeat_s: float = HEARTBEAT_S
    omniscient: bool = False


_LEARNING = 0.1
OMNISCIENT = Delays(link_s=0.0, pages_s=0.0, note_s=0.0, snapshot_s=0.0, omniscient=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who takes part.

    Attributes:
        num_routers: requests reach the routers in turn, as through a layer-4 load balancer.
        num_engines: from the beginning.
        choose: makes the choice of engines.
        weights: of the cost's terms.
        delays: between processes.
        shape: of every engine.
        joins: seconds at which one more engine joins each.
        keeps_notes: whether placement notes arrive; without Redis they do not.
    """

    num_routers: int = 1
    num_engines: int = 8
    choose: Choose = by_cost
    weights: Weights = field(default_factory=Weights)
    delays: Delays = field(default_factory=Delays)
    shape: EngineShape = field(default_factory=EngineShape)
    joins: tuple[float, ...] = ()
    keeps_notes: bool = True


class Simulation:
    """One run of one workload."""

    def __init__(self, setup: Setup, workload: Workload, *, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.engines: dict[str, SimulatedEngine] = {}
        self.routers: list[SimulatedRouter] = []
        self._setup = setup
        self._delays = setup.delays
        self._workload = workload
        self._random = random.Random(seed)
        self._done: list[Done] = []
        self._num_arrived = 0
        self._mean_output = 64.0  # tokens; what a router expects is learned, as in octavo_router.pace
        self._seen: set[int] = set()
        self._live: dict[str, set[_Request]] = {}  # by engine
        for number in range(setup.num_routers):
            self.routers.append(
                SimulatedRouter(
                    number, self.clock, choose=setup.choose, weights=setup.weights, note=self._note_from(number)
                )
            )
        for _ in range(setup.num_engines):
            self._join()

    def run(self) -> Result:
        """Run until every request has ended."""
        for at, job in self._workload.arrivals:
            self.clock.after(at, partial(self._arrive, job))
        for at in self._setup.joins:
            self.clock.after(at, self._join)
        self.clock.run(lambda: len(self._done) == self._workload.num_jobs)
        return Result(
            done=tuple(self._done),
            work_s={engine.engine_id: engine.work_s for engine in self.engines.values()},
            seconds=self.clock.now,
        )

    def _join(self) -> None:
        engine_id = f"engine-{len(self.engines)}"
        engine = SimulatedEngine(
            engine_id,
            self._setup.shape,
            self.clock,
            tell_pages=lambda change: self._spread_pages(engine_id, change),
        )
        self.engines[engine_id] = engine
        self._live[engine_id] = set()
        for router in self.routers:
            router.join(engine.info)
            self._send_snapshot(engine, router)
        if not self._delays.omniscient:
            self.clock.after(self._random.uniform(0, self._delays.heartbeat_s), lambda: self._beat(engine))

    def _beat(self, engine: SimulatedEngine) -> None:
        report = engine.load
        for router in self.routers:
            self.clock.after(self._delays.link_s, partial(router.take_load, engine.engine_id, report))
        self.clock.after(self._delays.heartbeat_s, lambda: self._beat(engine))

    def _spread_pages(self, engine_id: str, change: PageChange) -> None:
        for router in self.routers:
            self._after(self._delays.pages_s, partial(self._take_pages, router, engine_id, change))

    def _take_pages(self, router: SimulatedRouter, engine_id: str, change: PageChange) -> None:
        if not router.take_pages(engine_id, change):
            self._send_snapshot(self.engines[engine_id], router)

    def _send_snapshot(self, engine: SimulatedEngine, router: SimulatedRouter) -> None:
        snapshot = engine.snapshot
        self._after(self._delays.snapshot_s, lambda: router.take_snapshot(engine.engine_id, snapshot))

    def _note_from(self, number: int) -> Callable[[PlacementNote], None]:
        def tell(note: PlacementNote) -> None:
            note = replace(note, pages=note.pages[:MAX_NOTE_PAGES])
            if self._setup.keeps_notes:
                for router in self.routers:
                    if router.number != number:
                        self._after(self._delays.note_s, partial(router.take_note, note))

        return tell

    def _arrive(self, job: Job) -> None:
        router = self.routers[self._num_arrived % len(self.routers)]
        self._num_arrived += 1
        if self._delays.omniscient:
            for engine in self.engines.values():
                router.know_load(engine.engine_id, self.true_load(engine))
        prompt = Prompt(job.prompt)
        reusable = prompt.hashes(ROOT, PAGE_SIZE)[: (len(prompt) - 1) // PAGE_SIZE]
        ideal = next((depth for depth, page in enumerate(reusable) if page not in self._seen), len(reusable))
        self._seen.update(prompt.hashes(ROOT, PAGE_SIZE))
        known, placement = router.route(prompt, output_tokens=min(job.max_tokens, round(self._mean_output)))
        request = _Request(self, job, known, placement, ideal * PAGE_SIZE)
        engine = self.engines[known.engine_id]
        self._live[known.engine_id].add(request)
        self._after(self._delays.link_s, lambda: engine.submit(request.submission))

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        if seconds:
            self.clock.after(seconds, event)
        else:
            event()

    def true_load(self, engine: SimulatedEngine) -> LoadReport:
        """Return what no report says: the load with every request counted by what it will compute, on its way or not."""
        live = self._live[engine.engine_id]
        return replace(
            engine.load,
            waiting_tokens=sum(request.tokens_ahead for request in live),
            num_running=len(live),
            num_waiting=0,
            pages_in_use=engine.pool.num_in_use,
        )

    def finish(self, request: _Request, job: Job, done: Done, output: list[int]) -> None:
        """Take a request that has ended, and let its client go on."""
        self._done.append(done)
        self._mean_output += _LEARNING * (done.output_tokens - self._mean_output)
        self._live[done.engine_id].remove(request)
        self._seen.update(Prompt(job.prompt + output).hashes(ROOT, PAGE_SIZE))
        following = job.follow_up(output) if job.follow_up else None
        if following is not None:
            delay_s, next_job = following
            self.clock.after(delay_s, lambda: self._arrive(next_job))


class _Request:
    """One request from its arrival at a router to its end."""

    def __init__(
        self, simulation: Simulation, job: Job, engine: KnownEngine, placement: Placement, ideal_tokens: int
    ) -> None:
        self._simulation = simulation
        self._job = job
        self._load = engine.load
        self._engine_id = engine.engine_id
        self._placement = placement
        self._ideal_tokens = ideal_tokens
        self._arrived_at = simulation.clock.now
        self.submission = Submission(
            job.prompt, job.max_tokens, placement=placement, on_first_token=self._first_token, on_end=self._end
        )

    @property
    def tokens_ahead(self) -> int:
        """Prompt tokens that a later request waits for."""
        return 0 if self._placement.is_prefilled else self._placement.tokens

    def _first_token(self) -> None:
        self._load.prefilled(self._placement)

    def _end(self) -> None:
        self._load.ended(self._placement)
        submission = self.submission
        done = Done(
            engine_id=self._engine_id,
            group=self._job.group,
            arrived_at=self._arrived_at,
            first_token_at=submission.first_token_at,
            ended_at=submission.ended_at,
            prompt_tokens=len(self._job.prompt),
            cached_tokens=submission.cached_tokens,
            ideal_tokens=self._ideal_tokens,
            output_tokens=len(submission.output),
        )
        self._simulation.finish(self, self._job, done, submission.output)
