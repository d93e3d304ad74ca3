"""Drives the processes that hold a closed loop's clients: started once, and used as the concurrency asks for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

from octavo.workloads import ClosedLoop

from octavo_client.bench.serving_load import ServingResult, joined

# One answer holds every gap between tokens of a process's clients.
_LINE_LIMIT: Final = 64 << 20
_CLIENTS_EACH: Final = 32
_MOST_PROCESSES: Final = 8


class LoadFailed(Exception):
    """Requests failed, or a process of clients did. The message is for a person."""


def num_processes(concurrency: int, cores: int | None = None) -> int:
    """Return how many processes hold `concurrency` clients; half the cores are left to what is measured."""
    available = max(1, (cores or os.cpu_count() or 1) // 2)
    return min(-(-concurrency // _CLIENTS_EACH), available, _MOST_PROCESSES)


class LoadProcesses:
    """The processes of clients; opened by `load_processes`."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def run(self, loop: ClosedLoop) -> ServingResult:
        """Run a closed loop.

        Raises:
            LoadFailed: a request or a process failed.
        """
        parts = num_processes(loop.concurrency)
        used = self._processes[:parts]
        order = asdict(loop)
        for index, process in enumerate(used):
            _say(process, json.dumps(order | {"part": [index, parts]}))
        await asyncio.gather(*map(_answer, used))
        for process in used:
            _say(process, "go")
        return joined([ServingResult(**answer) for answer in await asyncio.gather(*map(_answer, used))])


@asynccontextmanager
async def load_processes(target: str) -> AsyncIterator[LoadProcesses]:
    """Start the processes for any number of clients of a router; they are killed at the end."""
    count = num_processes(_MOST_PROCESSES * _CLIENTS_EACH)
    async with AsyncExitStack() as stack:
        yield LoadProcesses([await stack.enter_async_context(_process(target)) for _ in range(count)])


@asynccontextmanager
async def _process(target: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "octavo_client.bench.load_process", target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _say(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None  # noqa: S101  # started with a pipe
    process.stdin.write(line.encode() + b"\n")


async def _answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101  # started with a pipe
    line = await process.stdout.readline()
    if not line:
        raise LoadFailed(f"a process of clients ended with status {await process.wait()}; see its errors")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise LoadFailed(answer["error"])
    return answer
