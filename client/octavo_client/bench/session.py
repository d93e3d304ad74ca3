"""What the suite measures on: a model that is loaded once and runs one workload after another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from octavo.workloads import Workload


class MeasureFailed(Exception):
    """A model did not load, or a workload did not run to its end. The message is for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What to load.

    Attributes:
        directory: of the model.
        numerics: mode of the engine.
        settings: of the engine, by name.
        threads: of the CPU.
        highest_id: prompts hold ids below it.
        routers: router processes behind one address.
    """

    directory: Path
    numerics: str
    settings: dict[str, str]
    threads: int
    highest_id: int
    routers: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's value in each run, and what explains it."""

    metric: str
    runs: tuple[float, ...]
    details: dict[str, Any]


class Session(Protocol):
    """A loaded model."""

    @property
    def dtype(self) -> str:
        """Type of weights and pages."""
        ...

    @property
    def numerics(self) -> str:
        """Mode of the engine."""
        ...

    async def measure(self, workload: Workload) -> list[Figure]:
        """Run a workload.

        Raises:
            MeasureFailed: it did not run to its end; the session is of no use any more.
        """
        ...
