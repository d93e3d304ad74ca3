"""What foreign gateways add to an engine: nothing, unless the setting `vllm_service` asks for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor import FileDescriptor
from octavo.settings import ConfigError
from octavo.v1 import engine_pb2

from octavo_engine.compat.step_feed import StepFeed
from octavo_engine.config import EngineConfig
from octavo_engine.messages import StepFrame
from octavo_engine.readiness import Readiness
from octavo_engine.switchboard import Switchboard

if TYPE_CHECKING:
    from octavo_engine.compat.vllm_service import VllmService


class Gateways:
    """The services for foreign gateways, from start to exit. The gateway's protos are imported only if asked for.

    Args:
        config: the engine's configuration.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._feed = StepFeed() if config.vllm_service else None
        self._service: VllmService | None = None

    @property
    def on_step(self) -> tuple[Callable[[StepFrame], None], ...]:
        """What must be told of each step."""
        return (self._feed.take_step,) if self._feed else ()

    def connect(self, switchboard: Switchboard, readiness: Readiness, flush: Callable[[], Awaitable[int]]) -> None:
        """Make the services.

        Raises:
            ConfigError: a package that they need is not installed.
        """
        if self._feed is None:
            return
        try:
            from octavo_engine.compat.vllm_service import VllmService  # noqa: PLC0415 - an optional extra
        except ImportError:
            need = "vllm_service: needs the package smg-grpc-proto: pip install 'octavo-serve[smg]'"
            raise ConfigError([need]) from None
        self._service = VllmService(switchboard, self._feed, readiness, flush=flush, model=self._config.model)

    def add_to(self, server: grpc.aio.Server) -> Sequence[FileDescriptor]:
        """Serve on a server that has not started; return the services' descriptions, for reflection."""
        return () if self._service is None else (self._service.add_to(server),)

    def open(self, info: engine_pb2.EngineInfo) -> None:
        """Start answering: the model is loaded."""
        if self._service is not None:
            self._service.open(info)
