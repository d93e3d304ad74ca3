"""A simulated router: the real directory, load corrections, routing and policy; only the links and the bus are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from octavo.v1 import engine_pb2
from octavo_router.directory import Directory, Outcome, PageChange
from octavo_router.fleet import Engine, Fleet
from octavo_router.kind import EngineKind, kind_of
from octavo_router.load import EngineLoad, LoadReport, Placement, PlacementNote
from octavo_router.policy import Cost, Weights
from octavo_router.routing import Prompt, Routing
from sim.clock import VirtualClock


@dataclass(slots=True)
class KnownEngine:
    """What a router keeps of an engine: the part of `octavo_router.fleet.Engine` that routing reads."""

    info: engine_pb2.EngineInfo
    kind: EngineKind
    load: EngineLoad = field(default_factory=EngineLoad)

    @property
    def engine_id(self) -> str:
        """Its name."""
        return self.info.engine_id

    @property
    def epoch(self) -> int:
        """Start of its process."""
        return self.info.epoch

    @property
    def page_hash_root(self) -> bytes:
        """Root of its pages' hashes."""
        return self.info.page_hash_root

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.info.model.page_size

    @property
    def max_model_len(self) -> int:
        """Tokens of its context."""
        return self.info.model.max_model_len

    @property
    def num_pages(self) -> int:
        """Pages of its pool."""
        return self.info.num_pages


class KnownFleet:
    """The part of `octavo_router.fleet.Fleet` that routing uses, on the virtual clock."""

    def __init__(self, router_id: str, clock: VirtualClock) -> None:
        self.directory = Directory()
        self.engines: dict[str, KnownEngine] = {}
        self.router_id = router_id
        self._clock = clock

    def serving(self) -> list[KnownEngine]:
        """Engines in the order of their ids."""
        return [self.engines[engine_id] for engine_id in sorted(self.engines)]

    def place(self, engine: KnownEngine, note: PlacementNote) -> Placement:
        """Count a request that was just sent to an engine."""
        self.directory.predict(engine.engine_id, note.pages, self._clock.now)
        return engine.load.place(note, self._clock.now)


Choose = Callable[["SimulatedRouter", Prompt], Cost]


class SimulatedRouter:
    """A router process.

    Args:
        number: which of the routers.
        clock: virtual time.
        choose: gives the engine for a prompt; `by_cost` is Octavo's own.
        weights: of the cost's terms.
        note: takes placement notes for the other routers.
    """

    def __init__(
        self,
        number: int,
        clock: VirtualClock,
        *,
        choose: Choose,
        weights: Weights,
        note: Callable[[PlacementNote], None],
    ) -> None:
        self.number = number
        self.num_routed = 0
        self._clock = clock
        self._choose = choose
        self._fleet = KnownFleet(f"router-{number}", clock)
        # Routing asks its fleet for nothing that KnownFleet lacks.
        self._routing = Routing(cast("Fleet", self._fleet), weights=weights, note=note, clock=lambda: clock.now)

    @property
    def engines(self) -> list[KnownEngine]:
        """Engines in the order of their ids."""
        return self._fleet.serving()

    @property
    def directory(self) -> Directory:
        """Its replica of the engines' pages."""
        return self._fleet.directory

    def join(self, info: engine_pb2.EngineInfo) -> None:
        """Know an engine; its snapshot follows."""
        self._fleet.engines[info.engine_id] = KnownEngine(info, kind_of(info))
        self._fleet.directory.join(info.engine_id, info.epoch)

    def take_pages(self, engine_id: str, change: PageChange) -> bool:
        """Take page events; False if a snapshot is needed."""
        return self._fleet.directory.apply(engine_id, change) is not Outcome.GAP

    def take_snapshot(self, engine_id: str, snapshot: engine_pb2.PageSnapshotResponse) -> None:
        """Take all pages of an engine."""
        self._fleet.directory.reset(
            engine_id,
            epoch=snapshot.epoch,
            sequence=snapshot.sequence,
            hashes=snapshot.hashes,
            digest=snapshot.digest,
        )

    def take_load(self, engine_id: str, report: LoadReport) -> None:
        """Take a heartbeat."""
        if engine_id in self._fleet.engines:
            self._fleet.engines[engine_id].load.update(report)

    def know_load(self, engine_id: str, report: LoadReport) -> None:
        """Know an engine's load as of this very moment: nothing needs to be corrected."""
        engine = self._fleet.engines[engine_id]
        known, engine.load = engine.load, EngineLoad()
        for name in ("_recent_tokens", "_recent_output", "_recent_at"):  # what was sent there stays known
            setattr(engine.load, name, getattr(known, name))
        self.take_load(engine_id, report)

    def take_note(self, note: PlacementNote) -> None:
        """Take another router's placement note."""
        if note.engine_id in self._fleet.engines:
            self._fleet.place(self._fleet.engines[note.engine_id], note)

    def costs(self, prompt: Prompt) -> Sequence[Cost]:
        """Rank the engines for a prompt, the best first."""
        return self._routing.route(prompt, room=0).ranked

    def route(self, prompt: Prompt, *, output_tokens: int = 0) -> tuple[KnownEngine, Placement]:
        """Choose an engine and count the request there; so many output tokens are expected."""
        cost = self._choose(self, prompt)
        self.num_routed += 1
        engine = self._fleet.engines[cost.engine_id]
        return engine, self._routing.place(
            cast("Engine", engine), prompt, cost, stream_id=self.num_routed, output_tokens=output_tokens
        )


def by_cost(router: SimulatedRouter, prompt: Prompt) -> Cost:
    """Choose as Octavo does."""
    return router.costs(prompt)[0]
