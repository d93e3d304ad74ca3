"""Results of benchmarks: one JSON line each, appended to a file per machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octavo_client.bench.peers import PeerFigure, fraction_of, rate_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured figure, or a workload that failed.

    Attributes:
        engine: "octavo", or the peer's name.
        variant: numerics mode or type, to tell rows of one engine apart.
        target: "offline", "grpc" or "router".
        shape: of the model, such as "llama-8b".
        workload: such as "closed:8:128:64": concurrency, prompt and output tokens; see octavo.workloads.
        metric: such as "out_tok_s"; empty for a failure.
        runs: every run's value; none for a failure.
        card: name of the GPU; None on a CPU.
        floor: best possible value, in the unit of the metric; see `roofline`.
        peer: a known figure to stand beside.
        error: why the workload failed.
        details: types, settings and whatever else explains the figure.
    """

    engine: str
    variant: str
    target: str
    shape: str
    workload: str
    metric: str = ""
    runs: tuple[float, ...] = ()
    card: str | None = None
    floor: float | None = None
    peer: PeerFigure | None = None
    error: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median over the runs."""
        return statistics.median(self.runs)

    @property
    def fraction(self) -> float | None:
        """Share of the best possible value; None if there is none, as for a gap of 0 between tokens that came at once."""
        return fraction_of(self.metric, self.value, self.floor) if self.floor is not None and self.value else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; None if the peer ran on another card, or nothing took any time."""
        if self.peer is None or self.peer.hardware != self.card or not self.value:
            return None
        return self.value / self.peer.value if rate_metric(self.metric) else self.peer.value / self.value


class ResultFile:
    """Appends results to a file of JSON lines as they come, with date, commit, hardware and versions.

    Args:
        path: made with its folder if need be.
        commit: of the code that is measured; asked from git if None.
    """

    def __init__(self, path: Path, commit: str | None = None) -> None:
        self._path = path
        self._common = {
            "commit": commit or _commit(),
            "versions": {
                name: _version(name) for name in ("octavo-serve", "torch", "triton", "transformers", "grpcio")
            },
        }

    def append(self, results: Sequence[Result]) -> None:
        """Append results; they are on disk on return."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        with self._path.open("a", encoding="utf-8") as file:
            for result in results:
                file.write(json.dumps({"date": date} | self._common | _line(result)) + "\n")


def _line(result: Result) -> dict[str, Any]:
    line: dict[str, Any] = {
        "hardware": result.card or processor(),
        "shape": result.shape,
        "engine": result.engine,
        "target": result.target,
        "variant": result.variant,
        "workload": result.workload,
    }
    if result.card is not None:
        line["host"] = processor()
    if result.error is not None:
        return line | {"error": result.error, **result.details}
    line |= {
        "metric": result.metric,
        "value": _rounded(result.value),
        "runs": [_rounded(value) for value in result.runs],
        **result.details,
    }
    if result.floor is not None and result.fraction is not None:
        line |= {"floor": _rounded(result.floor), "fraction": round(result.fraction, 4)}
    if (peer := result.peer) is not None:
        line["peer"] = {
            "engine": peer.engine,
            "version": peer.version,
            "hardware": peer.hardware,
            "value": peer.value,
            "fraction": None if peer.fraction is None else round(peer.fraction, 4),
        }
    if result.ratio is not None:
        line["ratio"] = round(result.ratio, 3)
    return line


def _rounded(value: float) -> float:
    return round(value, 4 if abs(value) < 10 else 3)


def processor() -> str:
    """Return the processor's name, its cores and the vector extensions that decide its speed."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
                flags = " ".join(flag for flag in known if flag in value.split())
    return f"{os.cpu_count()} cores {model} ({flags})"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],  # noqa: S607  # the user's git
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
