"""The operators' gRPC service of a router, on a port of its own."""
# ruff: noqa: N802  # gRPC methods keep the names that the proto gives them

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from octavo.errors import Unsupported
from octavo.v1 import admin_pb2, admin_pb2_grpc, engine_pb2

from octavo_router.admission import Admission
from octavo_router.call import Context
from octavo_router.fleet import Fleet
from octavo_router.link import EngineLink
from octavo_router.load import LoadReport

_OLDEST_MS = (1 << 32) - 1


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Drains this router and lists the engines that it knows."""

    def __init__(self, fleet: Fleet, admission: Admission, *, drain: Callable[[float | None], Awaitable[int]]) -> None:
        self._fleet = fleet
        self._admission = admission
        self._drain = drain

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        """Take nothing new and wait for what runs; see the proto."""
        del context
        num_before = self._admission.num_in_flight
        num_left = await self._drain(request.grace_ms / 1000 or None)
        return admin_pb2.DrainResponse(num_finished=max(0, num_before - num_left))

    async def FlushPrefixCache(
        self, request: admin_pb2.FlushPrefixCacheRequest, context: Context
    ) -> admin_pb2.FlushPrefixCacheResponse:
        """Not for routers."""
        del request, context
        raise Unsupported("not_an_engine", "a router has no prefix cache; ask an engine")

    async def ListEngines(
        self, request: admin_pb2.ListEnginesRequest, context: Context
    ) -> admin_pb2.ListEnginesResponse:
        """List engines; see the proto."""
        del request, context
        statuses = [self._status(link) for link in self._fleet.links]
        statuses.sort(key=lambda status: (status.engine.engine_id, status.address))
        return admin_pb2.ListEnginesResponse(engines=statuses)

    def _status(self, link: EngineLink) -> admin_pb2.EngineStatus:
        engine_id = "" if link.info is None else link.info.engine_id
        engine = self._fleet.engine(engine_id)
        load = None if engine is None or engine.link is not link else _load(engine.load.report)
        age_ms = _OLDEST_MS if math.isinf(link.age_s) else round(link.age_s * 1000)
        return admin_pb2.EngineStatus(
            engine=link.info,
            load=load,
            address=link.address,
            state=link.state.value,
            num_streams=link.num_streams,
            num_resident_pages=0 if load is None else self._fleet.directory.num_resident(engine_id),
            age_ms=min(age_ms, _OLDEST_MS),
        )


def _load(report: LoadReport) -> engine_pb2.Load:
    return engine_pb2.Load(
        num_waiting=report.num_waiting,
        waiting_tokens=report.waiting_tokens,
        num_running=report.num_running,
        pages_in_use=report.pages_in_use,
        pages_cached=report.pages_cached,
        pages_free=report.pages_free,
        prefill_tokens_per_s=report.prefill_tokens_per_s,
        decode_s_per_sequence=report.decode_s_per_sequence,
        step_id=report.step_id,
        draining=report.draining,
        warming=report.warming,
    )
