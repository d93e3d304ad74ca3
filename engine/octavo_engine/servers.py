"""The gRPC servers of an engine: one for routers, one for operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import grpc
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from octavo.rpc_errors import ErrorInterceptor
from octavo.serving import bind, enable_reflection
from octavo.v1 import admin_pb2, admin_pb2_grpc, engine_pb2, engine_pb2_grpc

from octavo_engine.admin import AdminService
from octavo_engine.config import EngineConfig
from octavo_engine.readiness import Readiness
from octavo_engine.service import EngineService

STOP_GRACE_S: Final = 2.0
MAX_MESSAGE_BYTES: Final = 16 << 20
"""The longest prompt with the longest committed output, and the largest page snapshot, are far below."""

_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two engines on one port would share its requests at random
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 4096),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Routers ping every 2 s to see a dead host soon; without this the server would answer with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


class Servers:
    """Both servers, started. Made by `start`.

    Attributes:
        address: where the engine service listens.
        admin_address: where the admin service listens.
    """

    def __init__(self, servers: Sequence[grpc.aio.Server], address: str, admin_address: str) -> None:
        self._servers = servers
        self.address = address
        self.admin_address = admin_address

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        service: EngineService,
        admin: AdminService,
        readiness: Readiness,
        add_more: Callable[[grpc.aio.Server], Sequence[FileDescriptor]] = lambda _server: (),
    ) -> Servers:
        """Start listening. `add_more` adds further services for routers and returns their descriptions.

        Raises:
            ListenError: an address is not free.
        """
        await readiness.hold("loading")
        engine_server, admin_server = _server(), _server()
        engine_pb2_grpc.add_EngineServiceServicer_to_server(service, engine_server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, admin_server)
        more = add_more(engine_server)
        for server, descriptors in (
            (engine_server, (engine_pb2.DESCRIPTOR, *more)),
            (admin_server, (admin_pb2.DESCRIPTOR,)),
        ):
            health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
            enable_reflection(server, (*descriptors, health_pb2.DESCRIPTOR))
        address = bind(engine_server, config.listen, "listen")
        admin_address = bind(admin_server, config.admin_listen, "admin_listen")
        await engine_server.start()
        await admin_server.start()
        return cls((engine_server, admin_server), address, admin_address)

    async def stop(self) -> None:
        """Stop listening, give open calls a moment to end, then cancel them."""
        for server in self._servers:
            await server.stop(STOP_GRACE_S)


def _server() -> grpc.aio.Server:
    return grpc.aio.server(interceptors=(ErrorInterceptor(),), options=_OPTIONS)
