"""What `octavo up` and `octavo demo` share: options that fit this machine, a start with its progress, an end by signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.status import Status

from octavo_client.cli.console import Failed, err, printable
from octavo_client.stack import LocalStack, StackFailed
from octavo_client.stack_options import StackOptions

DEFAULT_PORT: Final = 50051
_PORTS_TRIED: Final = 20

_T = TypeVar("_T")


def stack_options(
    *,
    state_directory: Path,
    model: str,
    model_name: str,
    engines: int | None,
    threads: int | None,
    router_listen: str = "127.0.0.1:0",
    redis_url: str | None = None,
    otlp_endpoint: str | None = None,
    engine_flags: tuple[str, ...] = (),
    router_flags: tuple[str, ...] = (),
) -> StackOptions:
    """Return options that fit this machine where the user left them open."""
    gpus = visible_gpus(os.environ, Path("/dev"))
    num_engines = engines or (len(gpus) if gpus else 2)
    if threads is None and not gpus:
        # Two engines with one thread each beat one with two threads on two cores; never more threads than cores.
        threads = max(1, len(os.sched_getaffinity(0)) // num_engines)
    return StackOptions(
        state_directory=state_directory.expanduser().absolute(),
        model=model,
        model_name=model_name,
        num_engines=num_engines,
        threads=threads,
        gpus=gpus,
        router_listen=router_listen,
        redis_url=redis_url,
        otlp_endpoint=otlp_endpoint,
        engine_flags=engine_flags,
        router_flags=router_flags,
    )


def visible_gpus(environ: Mapping[str, str], devices: Path) -> tuple[str, ...]:
    """Return the CUDA device ids that a process may use, found without CUDA."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part for part in chosen.split(",") if part and part != "-1")
    found = sorted(int(path.name[6:]) for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    return tuple(str(index) for index in range(len(found)))


def free_port(first: int = DEFAULT_PORT) -> int:
    """Return the first free port from `first` on, or 0 (any) if all of the next twenty are taken."""
    for port in range(first, first + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    return 0


class Narrator:
    """Tells what a stack does: in one changing line while it starts on a terminal, line by line otherwise."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __call__(self, line: str) -> None:
        """Tell the next thing."""
        if self._status is not None and err.is_terminal:
            self._status.update(printable(line))
        elif not line.endswith("%"):  # a log file need not follow the progress of loading
            err.print(printable(line), markup=False)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Show the changing line while the stack starts."""
        with err.status("Starting") as self._status:
            yield
        self._status = None


async def until_signal(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Run until it ends, or until SIGINT, SIGTERM or SIGHUP cancels it (then None); a second signal cancels its clean-up."""
    task = asyncio.create_task(work)
    signalled: list[int] = []

    def cancel(number: int) -> None:
        signalled.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
    try:
        return await task
    except asyncio.CancelledError:
        if signalled:
            return None
        raise


@contextlib.asynccontextmanager
async def started(options: StackOptions) -> AsyncIterator[LocalStack]:
    """Start a stack with its progress shown, and stop it at the end.

    Raises:
        Failed: a process did not come up; the message has the end of its log.
    """
    narrator = Narrator()
    stack = LocalStack(options, narrator)
    async with contextlib.AsyncExitStack() as running:
        try:
            with narrator.starting():
                await running.enter_async_context(stack)
        except StackFailed as error:
            raise Failed(str(error)) from None
        yield stack
