"""AdminService: what an operator may do to this engine. It listens on a port of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from octavo.errors import Unsupported
from octavo.v1 import admin_pb2, admin_pb2_grpc


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Drain and flush.

    Args:
        drain: takes the grace in seconds, None for the configured one; gives the requests finished and handed over.
        flush: drops the cached pages; gives their number.
    """

    def __init__(
        self, drain: Callable[[float | None], Awaitable[tuple[int, int]]], flush: Callable[[], Awaitable[int]]
    ) -> None:
        self._drain = drain
        self._flush = flush

    async def Drain(  # noqa: N802, D102 - the contract's name; described there
        self, request: admin_pb2.DrainRequest, context: Any
    ) -> admin_pb2.DrainResponse:
        del context
        num_finished, num_handed_over = await self._drain(request.grace_ms / 1000 if request.grace_ms else None)
        return admin_pb2.DrainResponse(num_finished=num_finished, num_handed_over=num_handed_over)

    async def FlushPrefixCache(  # noqa: N802, D102 - as above
        self, request: admin_pb2.FlushPrefixCacheRequest, context: Any
    ) -> admin_pb2.FlushPrefixCacheResponse:
        del request, context
        return admin_pb2.FlushPrefixCacheResponse(num_pages=await self._flush())

    async def ListEngines(  # noqa: N802, D102 - as above
        self, request: admin_pb2.ListEnginesRequest, context: Any
    ) -> admin_pb2.ListEnginesResponse:
        del request, context
        raise Unsupported("not_a_router", "an engine knows no other engines; ask a router")
