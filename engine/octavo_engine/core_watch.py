"""Tells a core that hangs from one that computes for long.

A core with requests sends a frame with every step, and ten a second when it can do nothing. Silence alone proves little: a
step that compiles a kernel takes seconds once, and a long prompt's takes longer than any before. But such a core computes,
and the operating system counts its processor time; a core that is stopped, waits for a lock or for a device that will
never answer uses none. So a core is called stalled only if it owes a frame for a while *and* has not computed meanwhile.
One that computes for ever is found by the plain limit. Nothing is learned from how long steps took before: a step in which
the core was stopped looks like a long one, and would teach patience with the next stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 2.0
"""Silence from which a core that does not compute is stalled, seconds: longer than a healthy one waits on a busy machine."""

_MOST_PULSE_GAP_S = 0.5  # a look that comes later than this says that this very process was held up
_IDLE_CPU_S = 0.02  # background threads of a core that does nothing use less than this in a second


class CoreWatch:
    """Judges the core with every pulse of its front.

    Args:
        cpu_time_s: gives the processor time that the core and its children have used, or None if nobody can tell.
        limit_s: silence that makes a core stalled whatever it does.
    """

    def __init__(self, cpu_time_s: Callable[[], float | None], *, limit_s: float) -> None:
        self._cpu_time_s = cpu_time_s
        self._limit_s = limit_s
        self._looked_at_s = float("-inf")
        self._idle_since_s: float | None = None
        self._idle_cpu_s = 0.0

    def is_stalled(self, silent_s: float, now_s: float) -> bool:
        """Return the judgement, to be asked for a few times a second.

        Args:
            silent_s: time for which the core has owed a frame; 0 if it owes none.
            now_s: monotonic time.
        """
        is_late = now_s - self._looked_at_s > _MOST_PULSE_GAP_S
        self._looked_at_s = now_s
        if silent_s > self._limit_s:
            return True
        if is_late or silent_s < PATIENCE_S / 2:
            self._idle_since_s = None  # what the core sent while this process was held up is still unread
            return False
        return self._idle_for(now_s) >= PATIENCE_S / 2 and silent_s >= PATIENCE_S

    def _idle_for(self, now_s: float) -> float:
        used_s = self._cpu_time_s()
        if used_s is None:
            return 0.0
        if self._idle_since_s is None or used_s - self._idle_cpu_s > _IDLE_CPU_S:
            self._idle_since_s, self._idle_cpu_s = now_s, used_s
        return now_s - self._idle_since_s


def cpu_time_s(pid: int) -> float | None:
    """Return the processor time in seconds of a process and its children, living and dead (a compiler may be one).

    None where there is no /proc, or the process is gone.
    """
    process = Path("/proc", str(pid))
    try:
        fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
        children = [int(child) for each in process.glob("task/*/children") for child in each.read_bytes().split()]
    except (OSError, ValueError):
        return None
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_time_s(child) or 0.0 for child in children)
