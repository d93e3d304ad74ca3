"""Looks for engines that can take one request, now or as soon as one is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator

import structlog
from octavo.attributes import Log
from octavo.errors import OctavoError, Unavailable

from octavo_router.decision import Decision
from octavo_router.fleet import Engine
from octavo_router.journal import Journal
from octavo_router.kind import EngineKind
from octavo_router.policy import Cost
from octavo_router.routing import Route, Routing
from octavo_router.work import Placed, Work

_log = structlog.get_logger("octavo.router.search")


class Search:
    """For one request. `kind` is that of the engine that has it, or had it last."""

    def __init__(self, work: Work, journal: Journal, *, routing: Routing) -> None:
        self.kind: EngineKind | None = None
        self.decisions: list[Decision] = []
        self._work = work
        self._journal = journal
        self._routing = routing

    @property
    def changed(self) -> asyncio.Event:
        """Set the next time that another outcome is possible; then there is a new one."""
        return self._routing.fleet.changed

    def candidates(self, excluded: Collection[tuple[str, int]]) -> Iterator[tuple[Engine, Cost, Placed]]:
        """Yield engines from best to worst, and what to say if one takes the request.

        Args:
            excluded: id and epoch of engines that may not be chosen.
        """
        route = self._route(excluded)
        for cost in route.ranked:
            engine = self._routing.fleet.engine(cost.engine_id)
            if engine is not None:
                placed = Placed(engine_id=cost.engine_id, matched_pages=cost.matched_pages, reason=route.reason)
                yield engine, cost, placed

    async def engine_of_kind(self, fingerprint: str, *, wait_s: float) -> Engine:
        """Return an engine of a kind; wait for one if there is none.

        Raises:
            Unavailable: none came.
        """
        give_up_at = time.monotonic() + wait_s
        while True:
            changed = self.changed
            for engine in self._routing.fleet.serving():
                if engine.kind.fingerprint == fingerprint:
                    return engine
            try:
                async with asyncio.timeout(max(0.0, give_up_at - time.monotonic())):
                    await changed.wait()
            except TimeoutError:
                raise Unavailable(
                    "no_engine_of_kind",
                    "no engine here is of the kind that began the output; send the request again, or try another router",
                    retry_after_s=1.0,
                ) from None

    def stranded(self, error: OctavoError) -> OctavoError:
        """Return why the request cannot go on: `error`, unless there are engines, but none of the kind that began it."""
        kinds = {engine.kind for engine in self._routing.fleet.serving()}
        if self._bound_kind is None or not kinds or self._bound_kind in kinds:
            return error
        return Unavailable(
            "no_engine_of_kind",
            f"the engine was lost, and only one of its kind ({self._bound_kind}) could go on with its very tokens; "
            "send the request again",
            retry_after_s=1.0,
        )

    @property
    def _bound_kind(self) -> EngineKind | None:
        """The kind of engine that began the output: another kind would go on with other tokens. None without output."""
        return self.kind if self._journal.is_committed else None

    def _route(self, excluded: Collection[tuple[str, int]]) -> Route:
        started_ns, started_at = time.time_ns(), time.perf_counter()
        running = [choice for choice in self._journal.choices if choice.ending is None]
        route = self._routing.route(
            self._work.prompt,
            room=self._work.room,
            num_committed=max((len(choice.token_ids) for choice in running), default=0),
            kind=self._bound_kind,
            excluded=excluded,
        )
        seconds = time.perf_counter() - started_at
        decision = Decision(route=route, attempt=self._journal.num_attempts, started_ns=started_ns, seconds=seconds)
        self.decisions.append(decision)
        if _log.is_enabled_for(logging.DEBUG):
            _log.debug(
                "request_routed",
                **{Log.REQUEST_ID: self._work.request_id},
                attempt=decision.attempt,
                prompt_pages=route.prompt_pages,
                reason=route.reason,
                candidates=decision.terms(),
            )
        return route
