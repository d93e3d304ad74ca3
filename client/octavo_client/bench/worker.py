"""The process that holds one contender in memory: `python -m octavo_engine.bench`, driven by JSON lines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

_LINE_LIMIT: Final = 1 << 20
_ANSWERS: Final = (b'{"facts"', b'{"tokens_per_s"', b'{"metric"', b'{"error"')


class WorkerFailed(Exception):
    """The worker did not load, refused a run or ended. The message is for a person."""


class Worker:
    """A running contender; opened by `worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.facts: dict[str, Any] = {}

    async def load(self, limit_s: float | None) -> None:
        """Wait until the contender is loaded, at most so long.

        Raises:
            WorkerFailed: it does not load.
        """
        self.facts = (await self._in_time(limit_s))["facts"]

    async def run(self, order: Mapping[str, Any], limit_s: float | None = None) -> dict[str, Any]:
        """Run one order; return its answer.

        Raises:
            WorkerFailed: the run failed or took too long, or the process ended. After that the worker is of no use.
        """
        assert self._process.stdin is not None  # noqa: S101  # started with a pipe
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise WorkerFailed("the benchmark's worker has ended") from None
        return await self._in_time(limit_s)

    async def _in_time(self, limit_s: float | None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(limit_s):
                return await self._answer()
        except TimeoutError:
            raise WorkerFailed(f"no answer after {limit_s:.0f} s") from None

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # started with a pipe
        while line := await self._process.stdout.readline():
            if not line.startswith(_ANSWERS):
                continue  # a library's own words
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise WorkerFailed(answer["error"])
            return answer
        raise WorkerFailed(f"the benchmark's worker ended with status {await self._process.wait()}; see its errors")


@asynccontextmanager
async def worker(
    contender: str,
    *,
    model: str,
    threads: int,
    settings: Mapping[str, str] | None = None,
    load_limit_s: float | None = None,
) -> AsyncIterator[Worker]:
    """Start a contender and load it; it is killed at the end.

    Args:
        contender: such as "octavo:exact"; see `octavo_engine.bench`.
        model: name or directory.
        threads: of the CPU.
        settings: of Octavo's engine, by name.
        load_limit_s: time that loading may take.

    Raises:
        WorkerFailed: it does not load.
    """
    flags = [f"--setting={key}={value}" for key, value in (settings or {}).items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "octavo_engine.bench", "--model", model, "--threads", str(threads)),
        *("--contender", contender, *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        opened = Worker(process)
        await opened.load(load_limit_s)
        yield opened
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
