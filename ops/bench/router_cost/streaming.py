"""What a streamed token costs the router, and what slow readers cost the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from processes import HERE, Process, engines, router, started

_SETTLE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """A load of streaming clients.

    Attributes:
        engines: so many, all in one process.
        steps_per_s: of each engine; every sequence gets a token in each. 0: as many as go.
        readers: clients that read.
        slow: clients that stop reading after the first message.
        max_tokens: of a request; then the client asks again.
        measured_s: how long is measured.
    """

    engines: int
    steps_per_s: float
    readers: int
    slow: int = 0
    max_tokens: int = 1000
    measured_s: float = 5.0


async def measure(load: Streams, model: str) -> dict[str, float]:
    """Run a load through a router of its own; return its figures by metric."""
    async with engines(load.engines, load.steps_per_s, model) as addresses, router(addresses, model) as (process, at):
        return await _read(process, at, load)


async def measure_bare(load: Streams) -> dict[str, float]:
    """Run a load against a server that sends constant bytes: what is left of the cost without Octavo."""
    async with bare_server(load.steps_per_s) as (process, at):
        return await _read(process, at, load)


@asynccontextmanager
async def bare_server(steps_per_s: float) -> AsyncGenerator[tuple[Process, str]]:
    """Run the server that sends constant bytes."""
    async with started("bare server", str(HERE / "bare_server.py"), "--steps-per-s", str(steps_per_s)) as process:
        yield process, (await process.line())["address"]


async def _read(server: Process, address: str, load: Streams) -> dict[str, float]:
    command = [str(HERE / "reader.py"), "--target", address, "--streams", str(load.readers)]
    command += ["--slow", str(load.slow), "--max-tokens", str(load.max_tokens)]
    async with started("readers", *command) as reader:
        await reader.line()
        from_s = time.monotonic() + _SETTLE_S
        until_s = from_s + load.measured_s
        assert reader.process.stdin is not None  # noqa: S101  # started with a pipe
        reader.process.stdin.write(f"{from_s} {until_s}\n".encode())
        await asyncio.sleep(from_s - time.monotonic())
        before_s, began_s = server.cpu_s, time.monotonic()
        await asyncio.sleep(until_s - time.monotonic())
        cpu_s, lasted_s = server.cpu_s - before_s, time.monotonic() - began_s
        read = await reader.line()
    return {
        "tokens_per_s": read["tokens"] / lasted_s,
        "tokens_per_message": read["tokens"] / read["messages"],
        "cpu_us_per_token": 1e6 * cpu_s / read["tokens"],
        "cpu_us_per_message": 1e6 * cpu_s / read["messages"],
        "tokens_per_cpu_s": read["tokens"] / cpu_s,
        "cpu_share": cpu_s / lasted_s,
        "gap_ms_p50": read["gap_ms_p50"],
        "gap_ms_p99": read["gap_ms_p99"],
    }
