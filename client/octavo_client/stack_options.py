"""What a local stack starts, and the command lines that this means."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from octavo.model_directory import DEFAULT_MODEL

ROUTER: Final = "router"
_DRAIN_SHARE: Final = 0.6  # of the time until SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where one process listens; each is "host:port"."""

    address: str
    admin_address: str
    metrics_address: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What to start."""

    state_directory: Path
    """Logs and ready files go here."""
    model: str = DEFAULT_MODEL
    """The default model's name, or a directory; see octavo.model_directory."""
    model_name: str | None = None
    """Name that requests use; None: the directory's name."""
    num_engines: int = 2
    threads: int | None = 1
    """CPU threads of each engine; None leaves it to the engine."""
    gpus: tuple[str, ...] = ()
    """CUDA device ids that the engines take in turn; empty leaves the environment alone."""
    router_listen: str = "127.0.0.1:0"
    redis_url: str | None = None
    """A Redis server that runs already; None starts an embedded one."""
    otlp_endpoint: str | None = None
    engine_flags: tuple[str, ...] = ()
    """Added to every engine's command line."""
    router_flags: tuple[str, ...] = ()
    wait_for_fleet: bool = True
    """Whether starting includes waiting until the router serves every engine."""
    start_timeout_s: float = 600.0
    stop_grace_s: float = 5.0
    """Time from SIGTERM to SIGKILL; running requests get most of it."""
    # -P keeps the current directory out of the children's import path.
    engine_command: tuple[str, ...] = (sys.executable, "-P", "-m", "octavo_engine")
    router_command: tuple[str, ...] = (sys.executable, "-P", "-m", "octavo_router")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def engine_names(self) -> tuple[str, ...]:
        """Ids of the engines."""
        return tuple(engine_name(index) for index in range(1, self.num_engines + 1))

    @property
    def log_directory(self) -> Path:
        """Where each process's log is, as NAME.jsonl."""
        return self.state_directory / "logs"

    def ready_file(self, name: str) -> Path:
        """Return the file in which a process tells where it listens."""
        return self.state_directory / f"{name}.ready.json"

    def log_file(self, name: str) -> Path:
        """Return the file that takes a process's output."""
        return self.log_directory / f"{name}.jsonl"

    def engine_line(self, index: int) -> list[str]:
        """Return the command line of engine `index`, from 1."""
        name = engine_name(index)
        line = [*self.engine_command, "--engine-id", name, "--listen", "127.0.0.1:0"]
        line += ["--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
        if self.threads is not None:
            line += ["--threads", str(self.threads)]
        return [*line, *self._common_flags(name), *self.engine_flags]

    def engine_environment(self, index: int, redis_url: str) -> dict[str, str]:
        """Return the environment of engine `index`, from 1. Redis's URL may hold a password: no command line shows it."""
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[(index - 1) % len(self.gpus)]} if self.gpus else {}
        return {**self.environment, **gpu, "OCTAVO_ENGINE_REDIS_URL": redis_url}

    def router_environment(self, redis_url: str) -> dict[str, str]:
        """Return the router's environment."""
        return {**self.environment, "OCTAVO_ROUTER_REDIS_URL": redis_url}

    def router_line(self, known: Endpoints | None) -> list[str]:
        """Return the router's command line; `known` are the addresses that it had before, to have them again."""
        line = [*self.router_command, "--router-id", ROUTER]
        line += ["--listen", known.address if known else self.router_listen]
        line += ["--admin-listen", known.admin_address if known else "127.0.0.1:0"]
        line += ["--metrics-listen", known.metrics_address if known else "127.0.0.1:0"]
        return [*line, *self._common_flags(ROUTER), *self.router_flags]

    def _common_flags(self, name: str) -> list[str]:
        flags = ["--model", self.model, "--log-form", "json"]
        flags += ["--ready-file", str(self.ready_file(name)), "--exit-with-stdin"]
        flags += ["--drain-grace-s", f"{_DRAIN_SHARE * self.stop_grace_s:g}"]
        if self.model_name:
            flags += ["--model-name", self.model_name]
        if self.otlp_endpoint:
            flags += ["--otlp-endpoint", self.otlp_endpoint]
        return flags


def engine_name(index: int) -> str:
    """Return the id of engine `index`, from 1."""
    return f"engine-{index}"


def engine_index(name: str) -> int:
    """Return the index in an engine's id."""
    return int(name.removeprefix("engine-"))


def read_endpoints(ready_file: Path) -> Endpoints | None:
    """Return what a ready file says; None while it is not written to its end."""
    try:
        content = json.loads(ready_file.read_text(encoding="utf-8"))
        return Endpoints(**{name: content[name] for name in ("address", "admin_address", "metrics_address", "pid")})
    except (OSError, ValueError, KeyError, TypeError):
        return None
