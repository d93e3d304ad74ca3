"""A TCP proxy whose network a test can break and mend while connections run.

    pass        forwards
    delay       forwards each piece so many seconds late, in order
    half-open   accepts and keeps connections, forwards nothing; what was sent meanwhile arrives once it is mended
    cut         resets all connections and refuses new ones

Delay and half-open are per direction: `UP` from client to server, `DOWN` from server to client.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from enum import Enum
from typing import Final, Self

_PIECE_BYTES: Final = 1 << 16
_MAX_PIECES: Final = 256
"""Pieces on their way in one direction of one connection; the sender is held back beyond them."""


class Direction(Enum):
    """Which way bytes go."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Direction.UP, Direction.DOWN
BOTH: Final = (UP, DOWN)


class FaultProxy:
    """Stands before one server. Its own address stays the same for its whole life; `upstream` may change at any time.

    Attributes:
        upstream: "host:port" that new connections are forwarded to; None refuses them.
    """

    def __init__(self, upstream: str | None = None) -> None:
        self.upstream = upstream
        self._server: asyncio.Server | None = None
        self._wires = {direction: _Wire() for direction in Direction}
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """Where clients dial."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def num_connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset all connections, and every new one, until `heal`."""
        self._is_cut = True
        for writer in self._writers:
            _reset(writer)

    def half_open(self, *directions: Direction) -> None:
        """Forward nothing in these directions (default: both), but keep the connections, until `heal`."""
        for direction in directions or BOTH:
            self._wires[direction].opened.clear()

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Let what enters from now on in these directions (default: both) take so long, until `heal`."""
        for direction in directions or BOTH:
            self._wires[direction].delay_s = seconds

    def heal(self) -> None:
        """Forward everything at once again, what was held back first."""
        self._is_cut = False
        for wire in self._wires.values():
            wire.delay_s = 0.0
            wire.opened.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._connect(reader, writer)
        except* OSError:
            pass  # one side is gone, and in a moment so is the other
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            return
        await self._wires[UP].opened.wait()  # the server does not hear of a connection that was made meanwhile
        if self._is_cut or self.upstream is None:
            return
        host, _, port = self.upstream.rpartition(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        self._writers.add(up_writer)
        try:
            if self._is_cut:
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(self._wires[UP].carry(reader, up_writer))
                group.create_task(self._wires[DOWN].carry(up_reader, writer))
        finally:
            up_writer.transport.abort()
            self._writers.discard(up_writer)


class _Wire:
    """One direction of all connections."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.opened = asyncio.Event()
        self.opened.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward until the sender ends, then end the receiver's side in its turn."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_PIECES)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take(reader, pieces))
            group.create_task(self._give(pieces, writer))

    async def _take(self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        now = asyncio.get_running_loop().time
        piece = b"."
        while piece:
            piece = await reader.read(_PIECE_BYTES)
            await pieces.put((now() + self.delay_s, piece))

    async def _give(self, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due, piece = await pieces.get()
            if self.delay_s:  # mended wires have no delay left, also for what is on its way
                await asyncio.sleep(max(0.0, due - now()))
            await self.opened.wait()
            if not piece:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(piece)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that its peer gets a reset at once, not the orderly end that a closing process sends."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
