"""The target `router`: real processes over gRPC, with streaming clients in processes of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from octavo.errors import OctavoError
from octavo.workloads import ClosedLoop, Workload, closed_loop, parse

from octavo_client import redis_server
from octavo_client.admin import AdminClient
from octavo_client.bench.kernel_cache import kernel_cache_state
from octavo_client.bench.load_processes import LoadFailed, LoadProcesses, load_processes
from octavo_client.bench.serving_load import ServingResult, run_closed_loop
from octavo_client.bench.session import Figure, MeasureFailed, Subject
from octavo_client.client import OctavoClient
from octavo_client.redis_server import RedisMissing
from octavo_client.stack import LocalStack, StackFailed
from octavo_client.stack_options import StackOptions
from octavo_client.values import Engine

_START_LIMIT_S: Final = 180.0
_WARM_LIMIT_S: Final = 60.0
_WARM_PERIOD_S: Final = 0.25
_RUN_LIMIT_S: Final = 150.0
_WARM_UP: Final = {"prompt_len": 64, "output_len": 16}
_WARM_UP_SEED: Final = 2000
_NO_REDIS: Final = "redis://127.0.0.1:1"


class RouterSession:
    """A running stack of one engine and its routers; opened by `router_session`."""

    def __init__(
        self, stack: LocalStack, engine: Engine, clients: LoadProcesses, start: Figure, subject: Subject
    ) -> None:
        self._stack = stack
        self._engine = engine
        self._clients = clients
        self._start = start
        self._highest_id = subject.highest_id
        self._routers = subject.routers

    @property
    def dtype(self) -> str:
        """Type of weights and pages."""
        return self._engine.dtype

    @property
    def numerics(self) -> str:
        """Mode of the engine."""
        return self._engine.numerics

    async def measure(self, workload: Workload) -> list[Figure]:
        """Run a workload.

        Raises:
            MeasureFailed: it did not run to its end.
        """
        if workload.kind == "start":
            return [self._start]
        try:
            async with asyncio.timeout(_RUN_LIMIT_S):
                loop = closed_loop(workload, self._highest_id)
                before = len(self._slow_launches())
                result = await self._serve(loop)
                details: dict[str, Any] = {"requests": loop.count, "routers": self._routers}
                if slow := self._slow_launches()[before:]:
                    details |= {"slow_launches": len(slow), "slowest_launch_s": round(max(slow), 3)}
                return _figures(result, details)
        except LoadFailed as error:
            raise MeasureFailed(str(error)) from None
        except TimeoutError:
            raise MeasureFailed(f"not over after {_RUN_LIMIT_S:.0f} s") from None

    def _slow_launches(self) -> list[float]:
        """Return how long each step took to launch that the engine found worth a line in its log: seconds."""
        lines = self._stack.options.log_file(self._engine.engine_id).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["seconds"] for line in lines if '"step_launch_slow"' in line]

    async def _serve(self, loop: ClosedLoop) -> ServingResult:
        # Prompts of their own: nothing that is measured is in the prefix cache.
        seed = _WARM_UP_SEED + loop.concurrency
        await self._clients.run(replace(loop, count=loop.concurrency, seed=seed, **_WARM_UP))
        return await self._clients.run(loop)


@asynccontextmanager
async def router_session(subject: Subject) -> AsyncIterator[RouterSession]:
    """Start a stack and let it serve one token.

    Raises:
        MeasureFailed: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        kernel_cache, started = kernel_cache_state(), time.monotonic()
        options = _options(subject, Path(folder))
        try:
            async with LocalStack(options) as stack, OctavoClient(stack.router.address) as client:
                await _first_token(client, subject.highest_id)
                start = Figure("seconds", (time.monotonic() - started,), {"kernel_cache": kernel_cache})
                async with load_processes(stack.router.address) as clients:  # they come up while the engine prepares
                    async with AdminClient(stack.router.admin_address) as admin:
                        engine = await _warm_engine(admin)
                    yield RouterSession(stack, engine, clients, start, subject)
        except (StackFailed, OctavoError) as error:
            raise MeasureFailed(str(error)) from None


async def _first_token(client: OctavoClient, highest_id: int) -> None:
    try:
        await run_closed_loop(client, parse("start").jobs(highest_id), 1)
    except ExceptionGroup as errors:
        raise MeasureFailed(f"the first request failed: {errors.exceptions[0]}") from None


async def _warm_engine(admin: AdminClient) -> Engine:
    """Return the engine once it has prepared its steps, or has had time enough: its start is measured, not hidden here."""
    give_up_at = time.monotonic() + _WARM_LIMIT_S
    while (engine := (await admin.engines())[0]).is_warming and time.monotonic() < give_up_at:  # noqa: ASYNC110  # of another process
        await asyncio.sleep(_WARM_PERIOD_S)
    return engine


def _options(subject: Subject, folder: Path) -> StackOptions:
    settings = {"numerics": subject.numerics} | subject.settings
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    router_flags = ("--workers", str(subject.routers)) if subject.routers > 1 else ()
    common: dict[str, Any] = {
        "state_directory": folder,
        "model": str(subject.directory),
        "num_engines": 1,
        "threads": subject.threads,
        "start_timeout_s": _START_LIMIT_S,
    }
    try:
        redis_server.server_binary()
    except RedisMissing:  # the router is told where the engine is, and nobody answers at Redis's address
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            engine = f"127.0.0.1:{probe.getsockname()[1]}"
        return StackOptions(
            **common,
            redis_url=_NO_REDIS,
            engine_flags=(*flags, "--listen", engine),
            router_flags=("--engines", engine, *router_flags),
        )
    return StackOptions(**common, engine_flags=tuple(flags), router_flags=router_flags)


def _figures(result: ServingResult, details: dict[str, Any]) -> list[Figure]:
    figures = [Figure("out_tok_s", (result.tokens_per_s,), details)]
    for name, seconds in (("ttft", result.first_token_s), ("itl", result.inter_token_s)):
        figures += [
            Figure(f"{name}_ms_p{percent}", (1e3 * percentile(seconds, percent),), details)
            for percent in ((50, 99) if seconds else ())
        ]
    return figures


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
