"""Results of benchmarks: one JSON line each, appended to a file per machine, and the table that a README shows."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured figure.

    Attributes:
        engine: "octavo", or the peer's name.
        variant: numerics mode or type, to tell rows of one engine apart.
        target: "offline", "grpc" or "router".
        workload: such as "closed:8:128:64": concurrency, prompt and output tokens.
        metric: such as "out_tok_s".
        value: the median over the runs.
        runs: every run's value.
        details: versions, types and whatever else explains the figure.
    """

    engine: str
    variant: str
    target: str
    workload: str
    metric: str
    value: float
    runs: tuple[float, ...]
    details: dict[str, Any]


def append(path: Path, results: Sequence[Result], shape: str) -> None:
    """Append results to a file of JSON lines, with date, commit, hardware and versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": hardware(),
        "versions": {name: _version(name) for name in ("octavo-serve", "torch", "transformers", "grpcio")},
        "shape": shape,
    }
    with path.open("a", encoding="utf-8") as file:
        for result in results:
            line = common | {
                "engine": result.engine,
                "target": result.target,
                "variant": result.variant,
                "workload": result.workload,
                "metric": result.metric,
                "value": round(result.value, 3),
                "runs": [round(value, 3) for value in result.runs],
                **result.details,
            }
            file.write(json.dumps(line) + "\n")


def hardware() -> str:
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
