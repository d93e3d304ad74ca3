"""The socket pair between the front and the core: frames of a 4-byte little-endian length and a msgpack message.

`CorePipe` is the core's end: it never blocks the step loop except to hold back a core that outruns its front. The front's
end is a pair of asyncio streams, see `core_process`.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

import msgspec

from octavo_engine.messages import Command, Report

HEADER: Final = struct.Struct("<I")
MAX_FRAME_BYTES: Final = 64 << 20
"""Longer frames are a bug: the longest legal one is a submit with the longest prompt and its committed output."""

_MAX_UNSENT_BYTES = 8 << 20
_RECEIVE_BYTES = 1 << 18

_encoder = msgspec.msgpack.Encoder()


def frame(message: Command | Report) -> bytes:
    """Return a message as a frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def body_length(header: bytes | bytearray) -> int:
    """Return the length of the body that follows a header.

    Raises:
        ValueError: the length is not one that `frame` gives; the stream is out of step.
    """
    (length,) = HEADER.unpack(header)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes")
    return int(length)


class FrontGone(Exception):
    """The front process closed its end."""


class CorePipe:
    """The core's end of the pair. One thread uses it.

    Args:
        connection: connected stream socket; the pipe owns it.
        max_unsent_bytes: reports beyond this make `send` wait until the front has read some.
    """

    def __init__(self, connection: socket.socket, *, max_unsent_bytes: int = _MAX_UNSENT_BYTES) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent = bytearray()
        self._received = bytearray()
        self._decoder = msgspec.msgpack.Decoder(Command)

    def send(self, report: Report) -> None:
        """Queue a report and send what the socket takes; wait only when the front is far behind.

        Raises:
            FrontGone: nobody reads any more.
        """
        self._unsent += frame(report)
        self._send_some()
        while len(self._unsent) > self._max_unsent_bytes:
            self._wait(select.POLLOUT, None)
            self._send_some()

    def flush(self) -> None:
        """Wait until everything is sent.

        Raises:
            FrontGone: nobody reads any more.
        """
        while self._unsent:
            self._wait(select.POLLOUT, None)
            self._send_some()

    def poll(self) -> list[Command]:
        """Return the commands that have arrived, without waiting.

        Raises:
            FrontGone: the front closed its end.
        """
        self._send_some()
        while len(self._received) < MAX_FRAME_BYTES + HEADER.size:
            try:
                chunk = self._connection.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except ConnectionError as error:
                raise FrontGone from error
            if not chunk:
                commands = self._decode()  # the last words count: a front says Shutdown and closes its end
                if not commands:
                    raise FrontGone
                return commands
            self._received += chunk
        return self._decode()

    def wait(self, timeout_s: float | None) -> list[Command]:
        """Wait for a command, at most `timeout_s` seconds, and return those that have arrived.

        Raises:
            FrontGone: the front closed its end.
        """
        self._wait(select.POLLIN | (select.POLLOUT if self._unsent else 0), timeout_s)
        return self.poll()

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def _wait(self, events: int, timeout_s: float | None) -> None:
        poller = select.poll()  # unlike select(), it takes descriptors above 1023
        poller.register(self._connection, events)
        poller.poll(None if timeout_s is None else timeout_s * 1000)

    def _send_some(self) -> None:
        while self._unsent:
            try:
                sent = self._connection.send(self._unsent)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise FrontGone from error
            del self._unsent[:sent]

    def _decode(self) -> list[Command]:
        commands: list[Command] = []
        start = 0
        buffer = self._received
        while len(buffer) - start >= HEADER.size:
            end = start + HEADER.size + body_length(buffer[start : start + HEADER.size])
            if len(buffer) < end:
                break
            commands.append(self._decoder.decode(memoryview(buffer)[start + HEADER.size : end]))
            start = end
        if start:
            del buffer[:start]
        return commands
