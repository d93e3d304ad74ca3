"""Several router processes behind one address: starts them, restarts those that die or hang, drains them all.

The kernel spreads connections over the processes that listen at one port (SO_REUSEPORT); a connection stays where it is.
This process only watches. If it is killed, the others notice the end of their standard input, and drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import grpc
import structlog
from octavo.process import StopRequest, write_ready_file
from octavo.serving import ListenError
from octavo.settings import split_address
from octavo.v1 import admin_pb2, admin_pb2_grpc

from octavo_router.config import RouterConfig

_log = structlog.get_logger("octavo.router.workers")

_READY_POLL_S: Final = 0.05
_WATCH_PERIOD_S: Final = 2.0
_ANSWER_TIMEOUT_S: Final = 5.0
_MAX_MISSES: Final = 2
_FIRST_BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 5.0
_KILL_MARGIN_S: Final = 5.0  # beyond the drain grace


class WorkerFailed(Exception):
    """A process ended before it served for the first time; `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker ended with status {status} before it served")
        self.status = status


class Worker:
    """One of the processes, over all its lives."""

    def __init__(self, index: int, line: Sequence[str], ready_file: Path) -> None:
        self.index = index
        self.served = asyncio.Event()  # for the first time
        self.addresses: dict[str, str] = {}  # as in a ready file
        self._line = line
        self._ready_file = ready_file
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False

    async def keep(self) -> None:
        """Keep a process running until `stop` was called and it has ended.

        Raises:
            WorkerFailed: the first one never served.
        """
        backoff_s = _FIRST_BACKOFF_S
        while not self._is_stopping:
            started_at = time.monotonic()
            status = await self._live()
            if self._is_stopping:
                return
            if not self.served.is_set():
                raise WorkerFailed(status)
            _log.error("worker_died", worker=self.index, status=status)
            backoff_s = _FIRST_BACKOFF_S if time.monotonic() - started_at > _MAX_BACKOFF_S else backoff_s
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def stop(self) -> None:
        """Ask the process to drain and end; a second time, to end at once."""
        self._is_stopping = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the process without asking."""
        self._send(signal.SIGKILL)

    async def _live(self) -> int:
        """Run one process to its end; return its exit status."""
        self._ready_file.unlink(missing_ok=True)
        # A session of its own: Ctrl-C on a terminal reaches the parent alone, which then asks each child once.
        process = await asyncio.create_subprocess_exec(
            *self._line, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self._process = process
        if self._is_stopping:  # asked while it was being started
            self._send(signal.SIGTERM)
        watch = asyncio.create_task(self._watch(), name=f"watch worker {self.index}")
        try:
            return await process.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            if process.returncode is None:  # this task was cancelled
                process.kill()
                await process.wait()

    async def _watch(self) -> None:
        """Note when it serves; then kill it when it does not answer any more."""
        while not self._ready_file.exists():  # noqa: ASYNC110  # another process writes it: there is no event
            await asyncio.sleep(_READY_POLL_S)
        self.addresses = json.loads(self._ready_file.read_text(encoding="utf-8"))
        self.served.set()
        _log.info("worker_serves", worker=self.index, pid=self.addresses["pid"])
        num_misses = 0
        while num_misses < _MAX_MISSES:
            await asyncio.sleep(_WATCH_PERIOD_S)
            num_misses = 0 if await _answers(self.addresses["admin_address"]) else num_misses + 1
        _log.error("worker_hangs", worker=self.index)
        self.kill()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def run_workers(config: RouterConfig, arguments: Sequence[str]) -> None:
    """Run as many router processes as the configuration says, until told to stop.

    Args:
        config: what `arguments` and the environment say.
        arguments: this process's flags, which the others get as well.

    Raises:
        ListenError: the address is not free.
        WorkerFailed: one did not start.
    """
    stop = StopRequest()
    stop.watch_signals()
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder, _reserved(config.listen) as address:
        workers = [
            Worker(index, _line(config, arguments, index, address, Path(folder)), Path(folder) / f"{index}.json")
            for index in range(config.workers)
        ]
        keepers = [asyncio.create_task(worker.keep(), name=f"worker {worker.index}") for worker in workers]
        stopping = asyncio.create_task(_stop_when_asked(stop, workers, config.drain_grace_s), name="stop")
        try:
            await _serve(config, workers, keepers, stop)
        finally:
            for task in (stopping, *keepers):
                task.cancel()
            await asyncio.gather(stopping, *keepers, return_exceptions=True)


async def _serve(
    config: RouterConfig, workers: Sequence[Worker], keepers: Sequence[asyncio.Task[None]], stop: StopRequest
) -> None:
    served = asyncio.create_task(_all_served(workers), name="served")
    try:
        await asyncio.wait([served, *keepers], return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_served = served.done()
        served.cancel()
    if is_served:
        first = workers[0].addresses
        addresses = {key: first[key] for key in ("address", "admin_address", "metrics_address")}
        if config.ready_file is not None:
            write_ready_file(config.ready_file, addresses)
        _log.info("workers_serve", num_workers=len(workers), **addresses)
        if config.exit_with_stdin:
            stop.watch_stdin(hurry=False)
    await asyncio.gather(*keepers)


async def _all_served(workers: Sequence[Worker]) -> None:
    for worker in workers:
        await worker.served.wait()


async def _stop_when_asked(stop: StopRequest, workers: Sequence[Worker], grace_s: float) -> None:
    await stop.asked.wait()
    _log.info("workers_drain", num_workers=len(workers))
    for worker in workers:
        worker.stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s + _KILL_MARGIN_S):
            await stop.hurried.wait()
            for worker in workers:
                worker.stop()
            await asyncio.sleep(_KILL_MARGIN_S)
    for worker in workers:
        worker.kill()


@contextlib.contextmanager
def _reserved(address: str) -> Iterator[str]:
    """Hold a port for all workers, without listening at it."""
    host, port = split_address(address)
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
            holder = stack.enter_context(socket.socket(family, kind, protocol))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(place)
        except OSError as error:
            raise ListenError("listen", address) from error
        yield f"{host}:{holder.getsockname()[1]}"


def _line(config: RouterConfig, arguments: Sequence[str], index: int, address: str, folder: Path) -> list[str]:
    """Return a worker's command line: its own flags win, because they stand last."""
    return [
        *(sys.executable, "-P", "-m", "octavo_router", *arguments),
        *("--workers", "1", "--reuse-port", "--listen", address, "--router-id", f"{config.router_id}-{index}"),
        *("--admin-listen", _port_of(config.admin_listen, index)),
        *("--metrics-listen", _port_of(config.metrics_listen, index)),
        *("--ready-file", str(folder / f"{index}.json"), "--exit-with-stdin"),
    ]


def _port_of(address: str, index: int) -> str:
    """Return a worker's own address: each next one has its port two higher, for admin and metrics stand side by side."""
    host, port = split_address(address)
    return f"{host}:{port + 2 * index if port else 0}"


async def _answers(admin_address: str) -> bool:
    options = (("grpc.use_local_subchannel_pool", 1),)  # a new connection each time: it must be taken
    async with grpc.aio.insecure_channel(admin_address, options=options) as channel:
        try:
            await admin_pb2_grpc.AdminServiceStub(channel).ListEngines(
                admin_pb2.ListEnginesRequest(), timeout=_ANSWER_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return True
