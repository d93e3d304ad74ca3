"""What grpc.aio says of a stream that ended while it was written to: the router tells that from what an engine says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from octavo_router.session import ENDED_UNDER_WRITE, reason_of


class Leaving(grpc.GenericRpcHandler):
    """Ends a stream in order after the first message."""

    def service(self, _details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self.leave)

    async def leave(self, requests: AsyncIterator[bytes], _context: Any) -> None:
        await anext(aiter(requests))


async def end_under_write(address: str) -> str:
    """Write until the stream has ended; return why it did, for the router."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream("/octavo.Test/Stream")()
        try:
            while True:
                await call.write(b"x" * 5000)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            return reason_of(error)


async def test_end_under_a_write_has_a_name_of_its_own() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Leaving(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        # Which of the two sees the end first is chance.
        reasons = {await end_under_write(address) for _ in range(50)}
    finally:
        await server.stop(None)
    assert ENDED_UNDER_WRITE in reasons
    assert reasons <= {ENDED_UNDER_WRITE, "InvalidStateError"}


def test_internal_error_of_an_engine_has_not() -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, "the link failed inside the engine")
    assert reason_of(error) == "internal"
