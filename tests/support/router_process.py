"""A real router process for tests, which a test may kill, freeze or stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

FREE_PORTS = ("--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
_TIMEOUT_S = 30.0


class RouterProcess:
    """A started router; its log is read all the time, so that it never waits for its reader."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._ready_file = ready_file
        self._told = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @property
    def address(self) -> str:
        return str(json.loads(self._ready_file.read_text())["address"])

    async def logged(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Wait until an event was logged so many times; return its lines."""
        async with asyncio.timeout(_TIMEOUT_S), self._told:
            while True:
                found = [line for line in self.lines if line.get("event") == event]
                if len(found) >= times:
                    return found
                if self._reading.done():
                    raise AssertionError(f"the router ended without {event}: {self.lines[-5:]}")
                await self._told.wait()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self) -> int:
        return await asyncio.wait_for(self.process.wait(), _TIMEOUT_S)

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            line = json.loads(raw) if raw.startswith(b"{") else {"event": raw.decode()}
            async with self._told:
                self.lines.append(line)
                self._told.notify_all()
        async with self._told:
            self._told.notify_all()


@asynccontextmanager
async def router_process(
    model_directory: Path, ready_file: Path, *flags: str, listen: str = "127.0.0.1:0"
) -> AsyncIterator[RouterProcess]:
    """Start `octavo-router`; yield it at once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo_router", "--model", str(model_directory), "--listen", listen, *FREE_PORTS),
        *("--ready-file", str(ready_file), "--log-form", "json", "--exit-with-stdin", *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    router = RouterProcess(process, ready_file)
    try:
        yield router
    finally:
        await router.close()
