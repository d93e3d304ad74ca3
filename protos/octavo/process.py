"""What every process of Octavo does around its work: runs an event loop, tells where it serves, hears that it must stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import structlog

_T = TypeVar("_T")
_log = structlog.get_logger()


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end of `work` in an event loop, the fastest there is, and return its result."""
    try:
        import uvloop  # noqa: PLC0415  # not there on every platform
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def package_version() -> str:
    """Return the version of the installed package; "0" in a bare checkout."""
    try:
        return metadata.version("octavo-serve")
    except metadata.PackageNotFoundError:
        return "0"


def tell_problems(program: str, problems: Sequence[str]) -> None:
    """Write problems to standard error, a line each: for people, before there is a log."""
    for problem in problems:
        sys.stderr.write(f"{program}: {problem}\n")


def write_ready_file(path: Path, addresses: Mapping[str, str]) -> None:
    """Write the bound addresses where a supervisor waits for them; whoever sees the file sees all of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps({**addresses, "pid": os.getpid()}), encoding="utf-8")
    part.replace(path)


class StopRequest:
    """Whether this process was told to stop, and whether to hurry.

    Attributes:
        asked: set by the first SIGTERM or SIGINT: stop, but let running requests end.
        hurried: set by a second one: stop at once.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def watch_signals(self) -> None:
        """Listen for signals from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def watch_stdin(self, *, hurry: bool) -> None:
        """Take the end of standard input for a request to stop.

        Args:
            hurry: stop at once then.
        """
        # A thread, because standard input may be a file, which no event loop can watch. It dies with the process.
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read_stdin, args=(loop, hurry), name="stdin", daemon=True).start()

    def _signalled(self) -> None:
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()

    def _read_stdin(self, loop: asyncio.AbstractEventLoop, hurry: bool) -> None:  # noqa: FBT001  # a thread's argument
        with suppress(OSError):
            # Not through sys.stdin: a thread that holds its lock at exit would crash the interpreter.
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop is gone already
            loop.call_soon_threadsafe(self._stdin_ended, hurry)

    def _stdin_ended(self, hurry: bool) -> None:  # noqa: FBT001  # an event loop passes arguments by position
        _log.info("stdin_ended")
        if hurry:
            self.hurried.set()
        self.asked.set()
