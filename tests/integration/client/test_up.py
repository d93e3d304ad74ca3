from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from octavo_client.running import read_running
from support import up_process


@contextmanager
def up(state: Path, *engine_flags: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(up_process.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, up_process.__file__, str(state), *engine_flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], phrase: str) -> str:
    """Read standard output until a phrase has come."""
    assert process.stdout is not None
    text = ""
    while phrase not in text:
        line = process.stdout.readline()
        assert line, f"ended without {phrase!r}: {text}"
        text += line
    return text


def told(process: subprocess.Popen[str], phrase: str) -> str:
    """Read standard error until a phrase has come."""
    assert process.stderr is not None
    text = ""
    while phrase not in text:
        line = process.stderr.readline()
        assert line, f"ended without {phrase!r}: {text}"
        text += line
    return text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path) as process:
        endpoints = read_until(process, "Ctrl-C")
        assert all(name in endpoints for name in ("router", "engine-1", "engine-2", "redis", "logs"))
        running = read_running(tmp_path)
        assert running is not None
        assert running.pid == process.pid
        process.send_signal(number)
        assert process.wait(10) == 0
    assert read_running(tmp_path) is None


def test_an_engine_that_dies_is_told_and_comes_back(tmp_path: Path) -> None:
    with up(tmp_path) as process:
        first = pid_of(read_until(process, "Ctrl-C"), "engine-2")
        os.kill(first, signal.SIGKILL)
        told(process, "engine-2 was killed by SIGKILL")
        assert "load weights" in told(process, "engine-2 is ready")  # the end of the log of the first one
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_second_signal_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    started = time.monotonic()
    with up(tmp_path, "--deaf") as process:
        read_until(process, "Ctrl-C")
        process.send_signal(signal.SIGINT)
        told(process, "Stopping engine")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert time.monotonic() - started < 20  # the grace is 30 s


def test_a_process_that_cannot_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with up(tmp_path, "--die", "78") as process:
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 1
    assert "ended with status 78 before it was ready" in errors
    assert "last words" in errors


def pid_of(endpoints: str, name: str) -> int:
    (line,) = (line for line in endpoints.splitlines() if line.startswith(name))
    return int(line.split()[-1])
