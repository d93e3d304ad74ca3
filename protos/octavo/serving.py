"""Ports: binds gRPC servers, adds reflection to them, and serves the metrics page for Prometheus."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from octavo.settings import ConfigError, split_address


class ListenError(ConfigError):
    """An address cannot be listened at: it is in use, or not this machine's."""

    def __init__(self, key: str, address: str) -> None:
        super().__init__([f"{key}: cannot listen at {address}: it is in use, or not an address of this machine"])


def bind(server: grpc.aio.Server, address: str, key: str) -> str:
    """Bind a server that has not started; return the address with its actual port.

    Args:
        server: what listens.
        address: "host:port"; port 0 picks a free one.
        key: the setting that names the address.

    Raises:
        ListenError: the address is not free.
    """
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ListenError(key, address) from error
    return f"{split_address(address)[0]}:{port}"


def enable_reflection(server: grpc.aio.Server, files: Iterable[FileDescriptor]) -> None:
    """Let clients such as grpcurl list the services that these proto files describe."""
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


class MetricsPage:
    """Serves a registry over HTTP for Prometheus, in threads of its own.

    Args:
        registry: what it shows.
        listen: "host:port"; port 0 picks a free one.

    Raises:
        ListenError: the address is not free.
    """

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        host, port = split_address(listen)
        try:
            self._server = _HttpServer((host.strip("[]"), port), MetricsHandler.factory(registry))
        except OSError as error:
            raise ListenError("metrics_listen", listen) from error
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving; takes up to 0.1 s."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)
