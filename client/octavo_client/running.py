"""Tells other commands where the stack of `octavo up` listens: a small file that lives as long as the stack does."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.model_directory import cache_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStack:
    """Where a local stack listens; addresses are "host:port"."""

    pid: int
    """The supervisor's process id."""
    router: str
    router_admin: str
    router_metrics: str
    log_directory: str


def default_state_directory() -> Path:
    """Return where `octavo up` keeps logs and its record."""
    return cache_directory() / "stack"


def write_running(state_directory: Path, running: RunningStack) -> None:
    """Record a stack that serves."""
    path = _record(state_directory)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(asdict(running), indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


def remove_running(state_directory: Path) -> None:
    """Take the record away."""
    _record(state_directory).unlink(missing_ok=True)


def read_running(state_directory: Path) -> RunningStack | None:
    """Return the stack that runs now; None if there is none, or its supervisor was killed."""
    try:
        running = RunningStack(**json.loads(_record(state_directory).read_text(encoding="utf-8")))
        os.kill(running.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return running


def _record(state_directory: Path) -> Path:
    return state_directory / "stack.json"
