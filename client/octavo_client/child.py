"""One process that a supervisor owns: started in a group of its own, watched, and stopped for good.

It ends with its owner whatever happens: its standard input is a pipe from the owner, and it was told to exit when that
ends. Its output goes straight into a log file, so nothing is lost when the owner is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_TAIL_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The end of a child."""

    name: str
    status: int
    """Exit status; the negative number of the signal that killed it."""
    last_lines: tuple[str, ...]

    @property
    def how(self) -> str:
        """How it ended, in words."""
        if self.status >= 0:
            return f"ended with status {self.status}"
        try:
            return f"was killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"was killed by signal {-self.status}"


class Child:
    """A running process. Its owner must `stop` or `kill` it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self._process = process
        self._swept = False

    @classmethod
    async def start(cls, name: str, command: Sequence[str], *, log_file: Path, environment: Mapping[str, str]) -> Self:
        """Start a process whose output is appended to `log_file`."""
        with log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                # A group of its own: Ctrl-C on the terminal reaches the owner alone, and all of it can be killed at once.
                start_new_session=True,
            )
        return cls(name, process, log_file)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def wait(self) -> Exit:
        """Wait for the end; whatever it left in its group goes with it."""
        status = await self._process.wait()
        if not self._swept:  # once, right after the end: later its id may be another group's
            self._swept = True
            self._signal_group(signal.SIGKILL)
        return Exit(name=self.name, status=status, last_lines=tuple(self.last_lines()))

    async def stop(self, grace_s: float) -> Exit:
        """Ask it to end (SIGTERM), and kill its group if it has not ended `grace_s` later."""
        try:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            async with asyncio.timeout(grace_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()
        finally:
            self.kill_group()  # also when this wait was cancelled

    async def kill(self) -> Exit:
        """Kill its whole group at once (SIGKILL)."""
        self.kill_group()
        return await self.wait()

    def kill_group(self) -> None:
        """Send SIGKILL to its whole group, if it runs, without waiting for the end."""
        if self.running:
            self._signal_group(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze its group (SIGSTOP), as a hang would."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen group go on (SIGCONT)."""
        self._signal_group(signal.SIGCONT)

    def last_lines(self, count: int = 15) -> list[str]:
        """Return the end of its log."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return list(deque((line for line in text.splitlines() if line.strip()), maxlen=count))

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
