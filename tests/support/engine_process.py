"""A real engine process for tests, steered by its log and by FIFOs: no test guesses how long something takes."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from octavo.v1 import admin_pb2_grpc, engine_pb2_grpc

FAKE_CORE_ENGINE = Path(__file__).with_name("fake_core_engine.py")
FREE_PORTS = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
TIMEOUT_S = 30.0


class Gate:
    """A FIFO that something in the engine takes one byte from before it goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        # Also open for reading, so that opening does not wait for the engine.
        self._descriptor = os.open(path, os.O_RDWR)

    def let_pass(self, times: int = 1) -> None:
        os.write(self._descriptor, b"." * times)

    def shut(self) -> None:
        """Let nothing more pass: takes back what was let pass and not used."""
        while select.select([self._descriptor], [], [], 0)[0]:
            os.read(self._descriptor, 1 << 16)

    def close(self) -> None:
        os.close(self._descriptor)


class EngineProcess:
    """A started engine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._told = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())
        self._channels: list[grpc.aio.Channel] = []

    @classmethod
    async def start(
        cls, *flags: str, script: Path = FAKE_CORE_ENGINE, env: dict[str, str] | None = None
    ) -> EngineProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            *FREE_PORTS,
            *("--log-form", "json", "--exit-with-stdin", "--engine-id", "engine-1"),
            *flags,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | (env or {}),
            limit=1 << 20,
        )
        return cls(process)

    async def logged(self, event: str, **fields: object) -> dict[str, Any]:
        """Return the first log line of this event with these fields, waiting for it."""
        async with asyncio.timeout(TIMEOUT_S), self._told:
            seen = 0
            while True:
                for line in self.lines[seen:]:
                    if line.get("event") == event and all(line.get(key) == value for key, value in fields.items()):
                        return line
                seen = len(self.lines)
                if self._reading.done():
                    raise AssertionError(f"the engine ended without {event} {fields}: {self.lines[-5:]}")
                await self._told.wait()

    async def serving(self) -> None:
        self._addresses = await self.logged("engine_listening")

    @property
    def address(self) -> str:
        return str(self._addresses["address"])

    @property
    def metrics_address(self) -> str:
        return str(self._addresses["metrics_address"])

    def channel(self, address: str | None = None) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(address or self.address, options=options)
        self._channels.append(channel)
        return channel

    def stub(self, address: str | None = None) -> engine_pb2_grpc.EngineServiceAsyncStub:
        return engine_pb2_grpc.EngineServiceStub(self.channel(address))  # type: ignore[return-value]

    def admin(self) -> admin_pb2_grpc.AdminServiceAsyncStub:
        channel = self.channel(str(self._addresses["admin_address"]))
        return admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[return-value]

    @property
    def core_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return int(children.split()[0])

    async def wait(self) -> int:
        return await asyncio.wait_for(self.process.wait(), TIMEOUT_S)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
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
async def running_engine(*flags: str, env: dict[str, str] | None = None) -> AsyncIterator[EngineProcess]:
    """An engine with the fake core that serves."""
    engine = await EngineProcess.start(*flags, env=env)
    try:
        await engine.serving()
        yield engine
    finally:
        await engine.close()
