from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from octavo_engine.core_watch import PATIENCE_S, CoreWatch, cpu_time_s

PULSE_S = 0.25
LIMIT_S = 30.0


class Core:
    """A core under watch, on a clock of its own, that has sent its last frame at `since_s`."""

    def __init__(self, *, tells_cpu_time: bool = True) -> None:
        self.cpu_s = 100.0
        self.now_s = self.since_s = 0.0
        self.watch = CoreWatch(lambda: self.cpu_s if tells_cpu_time else None, limit_s=LIMIT_S)

    def stalled_after(self, *, computes: float = 0.0) -> float | None:
        """Return how long it is silent until it is called stalled, if it uses this share of a processor meanwhile."""
        for pulse in count(1):
            silent_s = pulse * PULSE_S
            self.now_s = self.since_s + silent_s
            self.cpu_s += computes * PULSE_S
            if self.watch.is_stalled(silent_s, self.now_s):
                return silent_s
            if silent_s > 2 * LIMIT_S:
                return None
        raise AssertionError


def test_core_that_neither_reports_nor_computes_is_stalled_within_two_seconds_and_a_pulse() -> None:
    assert PATIENCE_S <= Core().stalled_after() <= PATIENCE_S + PULSE_S


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_core_that_computes_is_stalled_at_the_limit_alone(share: float) -> None:
    assert LIMIT_S <= Core().stalled_after(computes=share) <= LIMIT_S + PULSE_S


def test_background_threads_do_not_pass_for_computing() -> None:
    assert Core().stalled_after(computes=0.002) <= PATIENCE_S + PULSE_S


def test_core_that_computes_after_a_hang_is_not_stalled_again() -> None:
    core = Core()
    core.stalled_after()
    core.since_s = core.now_s  # it wakes up, and its next step takes long
    assert core.stalled_after(computes=1.0) >= LIMIT_S


def test_core_is_stalled_at_the_limit_alone_where_nobody_tells_what_it_computes() -> None:
    assert LIMIT_S <= Core(tells_cpu_time=False).stalled_after() <= LIMIT_S + PULSE_S


def test_front_that_was_held_up_itself_judges_nobody() -> None:
    watch = CoreWatch(lambda: 1.0, limit_s=LIMIT_S)
    assert not any(watch.is_stalled(silent_s=now_s, now_s=now_s) for now_s in range(1, 20))


def test_core_that_owes_nothing_is_never_stalled() -> None:
    watch = CoreWatch(lambda: 1.0, limit_s=LIMIT_S)
    assert not any(watch.is_stalled(0.0, pulse * PULSE_S) for pulse in range(1000))


def test_core_that_reports_again_is_not_stalled_any_more() -> None:
    core = Core()
    core.stalled_after()
    assert not core.watch.is_stalled(0.0, core.now_s + PULSE_S)


@contextmanager
def child_running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-S", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield child
        finally:
            os.killpg(child.pid, signal.SIGKILL)  # its own children too


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_of_children_counts() -> None:
    nested = (
        "import subprocess, sys; print(flush=True); subprocess.run([sys.executable, '-S', '-c', 'while True: pass'])"
    )
    with child_running(nested) as child:
        before = after = cpu_time_s(child.pid)
        deadline = time.monotonic() + 20
        while after is None or before is None or after < before + 0.2:
            assert time.monotonic() < deadline, "the grandchild computes all the time"
            after = cpu_time_s(child.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_that_waits_uses_no_processor_time() -> None:
    with child_running("import sys; print(flush=True); sys.stdin.read()") as child:
        before = cpu_time_s(child.pid)
        time.sleep(0.3)  # what it might use in a while is the question
        after = cpu_time_s(child.pid)
        assert before is not None
        assert after is not None
        assert after - before <= 0.02


def test_processor_time_of_a_process_that_is_gone_is_unknown() -> None:
    process = os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], {})
    os.waitpid(process, 0)
    assert cpu_time_s(process) is None
