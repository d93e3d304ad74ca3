"""The engines that this router knows: one link each, their load, and the directory of their pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from octavo.v1 import engine_pb2, types_pb2

from octavo_router.directory import Directory, Outcome, PageChange
from octavo_router.kind import kind_of
from octavo_router.link import EngineLink
from octavo_router.liveness import LinkState, LinkTimes
from octavo_router.load import EngineLoad, LoadReport, Placement, PlacementNote
from octavo_router.wakeups import Wakeups

_log = structlog.get_logger("octavo.router.fleet")

MAX_ENGINES = 1024


@dataclass(frozen=True, slots=True)
class StaticEngine:
    """An engine named in the configuration; its id is None where the configuration gives only the address."""

    address: str
    engine_id: str | None = None


class Engine:
    """One engine process that said welcome: its stable name, and `epoch`, the start of the process."""

    def __init__(self, link: EngineLink, info: engine_pb2.EngineInfo) -> None:
        self.link = link
        self.info = info
        self.engine_id = info.engine_id
        self.epoch = info.epoch
        self.kind = kind_of(info)
        # Looked at several times for each request; in a message each look costs more than all else of it.
        self.page_hash_root = info.page_hash_root
        self.page_size = info.model.page_size
        self.max_model_len = info.model.max_model_len
        self.num_pages = info.num_pages
        self.load = EngineLoad()

    @property
    def is_serving(self) -> bool:
        """Whether it takes new requests."""
        return self.link.state is LinkState.SERVING


class Fleet:
    """Owns the links. Addresses come from the configuration and, as hints, from Redis; what counts is the welcome."""

    def __init__(
        self,
        static: Sequence[StaticEngine],
        *,
        router_id: str,
        model_name: str,
        tokenizer_revision: str,
        times: LinkTimes | None = None,
    ) -> None:
        self.directory = Directory()
        self.model_name = model_name
        self._static = {engine.address: engine for engine in static}
        self._leased: dict[str, str] = {}  # engine id -> address
        self._links: dict[str, tuple[EngineLink, asyncio.Task[None]]] = {}  # by address
        self._engines: dict[str, Engine] = {}
        self._serving: list[Engine] | None = None  # None: to be found out again
        self._refusals: dict[str, str] = {}  # by address, why its engine is not used
        self.router_id = router_id
        self._tokenizer_revision = tokenizer_revision
        self._times = times or LinkTimes()
        self._wakeups = Wakeups()
        self._changed = asyncio.Event()
        self._closing = False

    def start(self) -> None:
        """Dial the engines of the configuration."""
        for address in self._static:
            self._dial(address)

    async def close(self) -> None:
        """Drop all links and wait until they are gone."""
        self._closing = True
        tasks = [task for _, task in self._links.values()]
        self._links.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def engines(self) -> list[Engine]:
        """Engines with a live link, in the order of their ids."""
        return [self._engines[engine_id] for engine_id in sorted(self._engines)]

    @property
    def links(self) -> list[EngineLink]:
        """All links, live or not."""
        return [link for link, _ in self._links.values()]

    def engine(self, engine_id: str) -> Engine | None:
        """Return an engine with a live link."""
        return self._engines.get(engine_id)

    def serving(self) -> Sequence[Engine]:
        """Engines that take new requests, in the order of their ids. Asked several times for each request, so kept."""
        if self._serving is None:
            self._serving = [engine for engine in self.engines if engine.is_serving]
        return self._serving

    @property
    def changed(self) -> asyncio.Event:
        """Set the next time that an engine comes, goes or changes its state; then there is a new one."""
        return self._changed

    def discovered(self, engine_id: str, address: str) -> None:
        """An engine holds a lease."""
        if self._leased.get(engine_id) == address:
            return
        if len(self._links) >= MAX_ENGINES:
            _log.error("engine_ignored", engine_id=engine_id, reason=f"more than {MAX_ENGINES} engines")
            return
        self._leased[engine_id] = address
        _log.info("engine_discovered", engine_id=engine_id, address=address)
        self._dial(address)
        self._drop_unwanted()

    def forgotten(self, engine_id: str) -> None:
        """An engine's lease is over. A link that still lives says more than a lease, so it stays until it breaks."""
        if self._leased.pop(engine_id, None) is not None:
            _log.info("engine_lease_over", engine_id=engine_id)
            self._drop_unwanted()

    def hint_load(self, engine_id: str, epoch: int, load: engine_pb2.Load) -> None:
        """Take an engine's load from its lease, if it is newer than what its link said."""
        engine = self._engines.get(engine_id)
        if engine is not None and engine.epoch == epoch:
            engine.load.hint(load_report(load))

    def hint_pages(self, engine_id: str, events: engine_pb2.PageEvents) -> None:
        """Take an engine's page events from Redis; those that its link brought already are stale and ignored."""
        engine = self._engines.get(engine_id)
        if engine is not None:
            self._apply(engine, events)

    def hint_placement(self, note: PlacementNote) -> None:
        """Another router sent a request to an engine."""
        engine = self._engines.get(note.engine_id)
        if engine is not None:
            self.place(engine, note)
            self.directory.settle()  # notes come also where nobody looks

    def place(self, engine: Engine, note: PlacementNote) -> Placement:
        """Count a request that was just sent to an engine."""
        now = time.monotonic()
        self.directory.predict(engine.engine_id, note.pages, now)
        return engine.load.place(note, now)

    # What the links tell.

    def link_up(self, link: EngineLink, load: engine_pb2.Load) -> bool:
        """Take an engine in, unless it is not what it should be, or known at another address."""
        info = link.info
        if info is None:
            return False
        refusal = self._refusal(link, info)
        if refusal is not None:
            if self._refusals.get(link.address) != refusal:  # said once, not with every try
                self._refusals[link.address] = refusal
                _log.warning("engine_refused", engine_id=info.engine_id, address=link.address, reason=refusal)
            return False
        self._refusals.pop(link.address, None)
        known = self._engines.get(info.engine_id)
        if known is not None:
            known.link.hang_up()  # an older process of this engine, which hangs or has not noticed its end
        engine = Engine(link, info)
        engine.load.update(load_report(load))
        self._engines[info.engine_id] = engine
        self._serving = None
        self.directory.join(info.engine_id, info.epoch)
        link.ask_snapshot()
        _log.info("engine_joined", engine_id=info.engine_id, address=link.address, epoch=info.epoch)
        return True

    def link_down(self, link: EngineLink) -> None:
        """Forget the engine; its link stays only where the configuration or a lease names it."""
        info = link.info
        if info is not None and (engine := self._engines.get(info.engine_id)) is not None and engine.link is link:
            del self._engines[info.engine_id]
            self.directory.leave(info.engine_id)
            _log.info("engine_left", engine_id=info.engine_id, address=link.address)
        self._notify()
        self._drop_unwanted()

    def link_changed(self, link: EngineLink) -> None:
        """Wake whoever waits for an engine."""
        _log.debug("link_state", address=link.address, state=link.state.value)
        self._notify()

    def link_load(self, link: EngineLink, load: engine_pb2.Load) -> None:
        """Take a load report."""
        engine = self._engine_of(link)
        if engine is not None:
            engine.load.update(load_report(load))

    def link_pages(self, link: EngineLink, events: engine_pb2.PageEvents) -> None:
        """Take page events."""
        engine = self._engine_of(link)
        if engine is not None:
            self._apply(engine, events)

    def link_snapshot(self, link: EngineLink, snapshot: engine_pb2.PageSnapshotResponse) -> None:
        """Take a snapshot."""
        engine = self._engine_of(link)
        if engine is None:
            return
        outcome = self.directory.reset(
            engine.engine_id,
            epoch=snapshot.epoch,
            sequence=snapshot.sequence,
            hashes=snapshot.hashes,
            digest=snapshot.digest,
        )
        if outcome is Outcome.GAP:
            link.ask_snapshot()

    def _apply(self, engine: Engine, events: engine_pb2.PageEvents) -> None:
        was_complete = not self.directory.needs_snapshot(engine.engine_id)
        outcome = self.directory.apply(
            engine.engine_id,
            PageChange(
                epoch=events.epoch,
                sequence=events.sequence,
                stored=events.stored,
                evicted=events.evicted,
                digest=events.digest,
                num_resident=events.num_resident,
            ),
        )
        if outcome is Outcome.GAP and was_complete:
            _log.info("page_events_gap", engine_id=engine.engine_id, sequence=events.sequence)
            engine.link.ask_snapshot()

    def _refusal(self, link: EngineLink, info: engine_pb2.EngineInfo) -> str | None:
        expected = {engine_id for engine_id, address in self._leased.items() if address == link.address}
        static = self._static.get(link.address)
        if static is not None and static.engine_id is not None:
            expected = {static.engine_id}
        if static is None and expected and info.engine_id not in expected:
            return f"expected {sorted(expected)}"
        known = self._engines.get(info.engine_id)
        if known is not None and known.link is not link and known.epoch >= info.epoch:
            return f"already known at {known.link.address}"
        return self._model_refusal(info.model)

    def _model_refusal(self, model: types_pb2.ModelInfo) -> str | None:
        if model.name != self.model_name:
            return f"serves model {model.name!r}, this router {self.model_name!r}"
        if model.tokenizer_revision != self._tokenizer_revision:
            return f"tokenizer {model.tokenizer_revision!r} differs from this router's {self._tokenizer_revision!r}"
        if model.page_size == 0 or model.max_model_len == 0 or model.vocab_size == 0:
            return "incomplete model information"
        return None

    def _engine_of(self, link: EngineLink) -> Engine | None:
        engine = self._engines.get(link.info.engine_id) if link.info is not None else None
        return engine if engine is not None and engine.link is link else None

    def _dial(self, address: str) -> None:
        if address not in self._links and not self._closing:
            link = EngineLink(
                address, router_id=self.router_id, listener=self, times=self._times, wakeups=self._wakeups
            )
            self._links[address] = (link, asyncio.create_task(link.run(), name=f"link:{address}"))

    def _drop_unwanted(self) -> None:
        wanted = {*self._static, *self._leased.values()}
        for address, (link, task) in list(self._links.items()):
            if address not in wanted and link.state is LinkState.UNREACHABLE:
                del self._links[address]
                self._refusals.pop(address, None)
                task.cancel()

    def _notify(self) -> None:
        self._serving = None
        self._changed.set()
        self._changed = asyncio.Event()


def load_report(load: engine_pb2.Load) -> LoadReport:
    """Return a load message as the sans-IO parts know it."""
    return LoadReport(
        num_waiting=load.num_waiting,
        waiting_tokens=load.waiting_tokens,
        num_running=load.num_running,
        pages_in_use=load.pages_in_use,
        pages_cached=load.pages_cached,
        pages_free=load.pages_free,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        decode_s_per_sequence=load.decode_s_per_sequence,
        step_id=load.step_id,
        draining=load.draining,
        warming=load.warming,
        taken={each.router_id: each.stream_id for each in load.taken},
    )
