"""What the standard health service answers: "" is liveness, the engine service's name is readiness."""

from __future__ import annotations

from typing import Final

import structlog
from grpc_health.v1 import health, health_pb2

LIVENESS: Final = ""
READINESS: Final = "octavo.v1.EngineService"

_log = structlog.get_logger()


class Readiness:
    """Whether the engine takes requests, for whoever asks: loading, draining and a stalled core make it not ready."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._reasons: set[str] = {"loading"}

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands in the way."""
        return not self._reasons

    async def hold(self, reason: str) -> None:
        """Be not ready for this reason, until `release`."""
        if reason not in self._reasons:
            self._reasons.add(reason)
            _log.info("engine_not_ready", reason=reason)
        await self._tell()

    async def release(self, reason: str) -> None:
        """Drop a reason for not being ready."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            await self._tell()
            if self.is_ready:
                _log.info("engine_ready_again" if reason == "stalled" else "engine_serving")

    async def _tell(self) -> None:
        status = health_pb2.HealthCheckResponse
        await self.servicer.set(READINESS, status.SERVING if self.is_ready else status.NOT_SERVING)
