"""The target `offline`: the engine's own step loop in a worker process, without a service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from octavo.workloads import Workload

from octavo_client.bench.kernel_cache import kernel_cache_state
from octavo_client.bench.session import Figure, MeasureFailed, Subject
from octavo_client.bench.worker import Worker, WorkerFailed, worker

LOAD_LIMIT_S: Final = 180.0
_RUN_LIMIT_S: Final = 150.0


class OfflineSession:
    """A worker that holds the engine; opened by `offline_session`."""

    def __init__(self, engine: Worker, started: float, kernel_cache: str) -> None:
        self._engine = engine
        self._started = started
        self._kernel_cache = kernel_cache

    @property
    def dtype(self) -> str:
        """Type of weights and pages."""
        return str(self._engine.facts["dtype"])

    @property
    def numerics(self) -> str:
        """Mode of the engine."""
        return str(self._engine.facts["numerics"])

    async def measure(self, workload: Workload) -> list[Figure]:
        """Run a workload; `start` must be the first.

        Raises:
            MeasureFailed: it did not run to its end.
        """
        try:
            answer = await self._engine.run({"workload": workload.name}, _RUN_LIMIT_S)
        except WorkerFailed as error:
            raise MeasureFailed(str(error)) from None
        if workload.kind == "start":  # the process's age, not the time of its first request
            since_start = time.monotonic() - self._started
            return [Figure("seconds", (since_start,), {"kernel_cache": self._kernel_cache})]
        return [Figure(answer["metric"], tuple(answer["runs"]), {})]


@asynccontextmanager
async def offline_session(subject: Subject) -> AsyncIterator[OfflineSession]:
    """Start a worker and load the model.

    Raises:
        MeasureFailed: it does not load.
    """
    kernel_cache, started = kernel_cache_state(), time.monotonic()
    try:
        async with worker(
            f"octavo:{subject.numerics}",
            model=str(subject.directory),
            threads=subject.threads,
            settings=subject.settings,
            load_limit_s=LOAD_LIMIT_S,
        ) as engine:
            yield OfflineSession(engine, started, kernel_cache)
    except WorkerFailed as error:
        raise MeasureFailed(str(error)) from None
