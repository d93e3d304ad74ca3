"""The processes of a measurement: engines, a router, readers. Each ends with the one that started it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo_client.admin import AdminClient

HERE: Final = Path(__file__).parent
_START_S: Final = 60.0
_POLL_S: Final = 0.05


class Failed(Exception):
    """A process did not do its part. The message is for a person."""


@dataclass(frozen=True, slots=True)
class Process:
    """A started process that says one JSON line when it is ready, or done."""

    name: str
    process: asyncio.subprocess.Process

    @property
    def cpu_s(self) -> float:
        """CPU time so far, user and system, of all its threads; in steps of the kernel's tick, seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def line(self) -> dict[str, Any]:
        """Return the next line that it says.

        Raises:
            Failed: it ended without a word.
        """
        assert self.process.stdout is not None  # noqa: S101  # started with a pipe
        line = await self.process.stdout.readline()
        if not line:
            raise Failed(f"the {self.name} ended with status {await self.process.wait()}; see its errors")
        said: dict[str, Any] = json.loads(line)
        return said


@asynccontextmanager
async def started(name: str, *command: str, log: Path | None = None) -> AsyncGenerator[Process]:
    """Run Python with a command line; the process is killed at the end."""
    output = log.open("wb") if log is not None else None
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=output or asyncio.subprocess.PIPE,
            stderr=output,
        )
    finally:
        if output is not None:
            output.close()
    try:
        yield Process(name, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def engines(count: int, steps_per_s: float, model: str) -> AsyncGenerator[Sequence[str]]:
    """Run so many scripted engines in one process; yield their addresses."""
    flags = ("--engines", str(count), "--steps-per-s", str(steps_per_s), "--model", model)
    async with started("engines", str(HERE / "engine.py"), *flags) as process:
        yield (await process.line())["addresses"]


@asynccontextmanager
async def router(engine_addresses: Sequence[str], model: str) -> AsyncGenerator[tuple[Process, str]]:
    """Run a router, and wait until it serves with all engines; yield it and its address."""
    with tempfile.TemporaryDirectory(prefix="router-cost-") as folder:
        ready, log = Path(folder) / "ready.json", Path(folder) / "log"
        command = ["-m", "octavo_router", "--model", model, "--model-name", "model", "--exit-with-stdin"]
        command += ["--engines", ",".join(engine_addresses), "--ready-file", str(ready), "--max-in-flight", "8192"]
        for port in ("--listen", "--admin-listen", "--metrics-listen"):
            command += [port, "127.0.0.1:0"]
        async with started("router", *command, log=log) as process:
            try:
                async with asyncio.timeout(_START_S):
                    while not ready.exists():
                        if process.process.returncode is not None:
                            raise Failed(f"the router did not start:\n{log.read_text('utf-8')}")
                        await asyncio.sleep(_POLL_S)
                    addresses = json.loads(ready.read_text("utf-8"))
                    await _all_serve(addresses["admin_address"], len(engine_addresses))
            except TimeoutError:
                raise Failed(f"the router does not serve:\n{log.read_text('utf-8')}") from None
            yield process, addresses["address"]


async def _all_serve(admin_address: str, count: int) -> None:
    async with AdminClient(admin_address) as admin:
        while sum(engine.state == "serving" for engine in await admin.engines()) < count:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)  # the state lives in another process, which has no event for it
