"""A stream on which nothing is said for long, as while a request waits for its first token."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# As clients and routers do to notice a dead host, but as often as a server lets them.
_PINGS = (("grpc.keepalive_time_ms", 1050), ("grpc.http2.max_pings_without_data", 0))
_QUIET_S = 4.6  # a server that minds pings ends the connection at the third one that comes too early


async def quiet_stream_lasts(address: str) -> bool:
    """Tell whether a server leaves a stream alone while its client does nothing but ping."""
    async with grpc.aio.insecure_channel(address, options=_PINGS) as channel:
        stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert isinstance(await stream.read(), health_pb2.HealthCheckResponse)
        try:
            async with asyncio.timeout(_QUIET_S):
                await stream.read()
        except TimeoutError:
            return True
        except grpc.aio.AioRpcError:
            return False
        finally:
            stream.cancel()
        return False
