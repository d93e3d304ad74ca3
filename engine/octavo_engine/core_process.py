"""The core as the front process holds it: a child at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec
import structlog

from octavo_engine.config import EngineConfig
from octavo_engine.messages import Command, Report, Shutdown
from octavo_engine.pipe import HEADER, body_length, frame

CORE_COMMAND: Final = (sys.executable, "-P", "-m", "octavo_engine.core")
_READ_BUFFER_BYTES = 1 << 20

_log = structlog.get_logger()


class CoreProcess:
    """A started core. Made by `start`, ended by `stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(Report)

    @classmethod
    async def start(cls, config: EngineConfig, command: Sequence[str] = CORE_COMMAND) -> CoreProcess:
        """Start a core with a configuration, which travels by standard input: arguments are public, passwords are not.

        Args:
            config: the engine's configuration.
            command: program that runs `core.main`; the number of its socket is added as the last argument.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.set_inheritable(True)
            process = await asyncio.create_subprocess_exec(
                *command, str(theirs.fileno()), stdin=asyncio.subprocess.PIPE, pass_fds=(theirs.fileno(),)
            )
        assert process.stdin is not None  # noqa: S101 - asked for above
        process.stdin.write(config.model_dump_json().encode())
        process.stdin.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_BUFFER_BYTES)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Queue a command. To a core that is gone it goes nowhere; `reports` tells."""
        if not self._writer.is_closing():
            self._writer.write(frame(command))

    async def drained(self) -> None:
        """Wait until the core has taken most of what was queued."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return  # `reports` ends, and with it every request

    async def reports(self) -> AsyncGenerator[Report]:
        """Yield the core's reports until it closes its end, whole or in the middle of a frame."""
        try:
            while True:
                length = body_length(await self._reader.readexactly(HEADER.size))
                yield self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def stop(self, grace_s: float) -> int:
        """Ask the core to exit, kill it if it does not within `grace_s`, and return its exit status."""
        self.send(Shutdown())
        self._writer.close()
        try:
            return await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            _log.warning("core_killed", pid=self.pid)
            self._process.kill()
            return await self._process.wait()
