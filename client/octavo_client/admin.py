"""A client of the admin port of a router or an engine: what operators may see and do."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import grpc
from octavo.errors import from_rpc_error
from octavo.v1 import admin_pb2, admin_pb2_grpc

from octavo_client.translation import engine_of
from octavo_client.values import Engine

_TIMEOUT_S: Final = 5.0
_DRAIN_MARGIN_S: Final = 10.0


class AdminClient:
    """Talks to one admin address. Use it as a context manager. Errors are OctavoErrors."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.target, options=(("grpc.use_local_subchannel_pool", 1),))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def engines(self) -> tuple[Engine, ...]:
        """Return the engines that a router knows, in the order of their ids."""
        try:
            response = await self._stub().ListEngines(admin_pb2.ListEnginesRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return tuple(engine_of(engine) for engine in response.engines)

    async def drain(self, grace_s: float) -> tuple[int, int]:
        """Drain the process; return how many requests ended in time, and how many were handed over."""
        request = admin_pb2.DrainRequest(grace_ms=round(grace_s * 1000))
        try:
            response = await self._stub().Drain(request, timeout=grace_s + _DRAIN_MARGIN_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return response.num_finished, response.num_handed_over

    async def flush_prefix_cache(self) -> int:
        """Drop every cached page of an engine that no sequence holds; return how many."""
        try:
            response = await self._stub().FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return response.num_pages

    def _stub(self) -> admin_pb2_grpc.AdminServiceAsyncStub:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with AdminClient(...) as admin`")
        return admin_pb2_grpc.AdminServiceStub(self._channel)
