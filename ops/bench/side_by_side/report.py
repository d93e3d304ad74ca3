"""Renders the newest results of each workload as tables, a column for each contender."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

PREFIX: Final = "side_by_side/"
"""What the workloads of these results begin with, in a file that may hold others."""
_BEGIN, _END = "<!-- side-by-side:begin -->", "<!-- side-by-side:end -->"


def render(results: Path, document: Path) -> None:
    """Write the tables between the markers of a document."""
    text = document.read_text(encoding="utf-8")
    tables = "\n\n".join(_tables([json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]))
    fresh = re.sub(f"{_BEGIN}.*?{_END}", lambda _found: f"{_BEGIN}\n{tables}\n{_END}", text, flags=re.DOTALL)
    document.write_text(fresh, encoding="utf-8")


def _tables(lines: list[dict[str, Any]]) -> list[str]:
    lines = [line for line in lines if line["workload"].startswith(PREFIX)]
    newest: dict[str, str] = {}
    for line in lines:
        newest[line["workload"]] = max(newest.get(line["workload"], ""), line["date"])
    return [
        _table(workload, [line for line in lines if (line["workload"], line["date"]) == (workload, date)])
        for workload, date in newest.items()
    ]


def _table(workload: str, lines: list[dict[str, Any]]) -> str:
    columns = sorted({_name(line) for line in lines})
    cells: dict[str, dict[str, str]] = {}
    for line in lines:
        metric = line.get("metric", "error")
        cells.setdefault(metric, {})[_name(line)] = line.get("error") or f"{line['value']:g}"
    first = lines[0]
    name, _, pace = workload.removeprefix(PREFIX).partition("@")
    engines = f"{first['num_engines']} engines" + (f" timed at {pace} ms" if pace else f" of {first['shape']}")
    title = f"`{name}`: {engines}"
    clients = f", {first['concurrency']} clients" if "concurrency" in first else ""
    rounds = max(len(line.get("runs", ())) for line in lines)
    median = f"median of {rounds} rounds" if rounds > 1 else "one round"
    rows = [
        f"{title}{clients}, {first['hardware']}, {median}",
        "",
        "| metric | " + " | ".join(columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    rows += [
        f"| {metric} | " + " | ".join(values.get(engine, "-") for engine in columns) + " |"
        for metric, values in cells.items()
    ]
    return "\n".join(rows)


def _name(line: dict[str, Any]) -> str:
    """Return the head of a contender's column."""
    version = f" {line['smg_version']}" if line["engine"] == "smg" else ""
    return f"{line['engine']}{version}{', ' if line['variant'] else ''}{line['variant']}"
