from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from octavo.random_model import write_random_model
from octavo.workloads import parse
from octavo_engine.bench.kernel_profile import Charge, _profile, charges, table
from support.tiny_models import engine


def kernel(name: str, start: float, duration: float, grid: list[int] | None = None) -> dict[str, Any]:
    return {"cat": "kernel", "name": name, "ts": start, "dur": duration, "args": {} if grid is None else {"grid": grid}}


def test_kernels_that_overlap_are_charged_with_the_time_that_was_watched() -> None:
    events = [
        {"cat": "cpu_op", "name": "no work of the device", "ts": 0, "dur": 1000},
        kernel("void first<int>(float*)", 10, 20, [2, 1, 1]),
        kernel("second", 12, 28),  # waits for the first one's end, at 30
        kernel("void first<int>(float*)", 50, 10, [2, 1, 1]),
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "ts": 60, "dur": 1, "args": {}},
    ]
    assert charges(events) == [
        Charge("first 2x1x1", 2, 20 + 20, 30),
        Charge("second", 1, 10, 28),
        Charge("Memcpy DtoH", 1, 1, 1),
    ]


def test_a_table_is_told_per_step_and_leaves_out_what_does_not_matter() -> None:
    lines = table([Charge("dear", 4, 9990.0, 10000.0), Charge("cheap", 2, 9.0, 9.0)], 2).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["dear", "2.0", "4995.0", "5000.0", "99.9%"],
        ["all", "3.0", "4999.5"],
    ]


# Without a GPU there is nothing to see; what is run, and how many steps of it are watched, is the same.
@pytest.mark.parametrize(("name", "steps"), [("decode:2:40", 24), ("prefill:2:64", 1), ("serve:2:16:4", 12)])
def test_only_the_steps_that_a_workload_is_about_are_watched(tmp_path: Path, name: str, steps: int) -> None:
    write_random_model(tmp_path, "tiny")
    rows, watched = _profile(engine(tmp_path), parse(name))
    assert rows == []
    assert watched == steps


def test_a_workload_that_is_not_profiled_is_refused(tmp_path: Path) -> None:
    write_random_model(tmp_path, "tiny")
    with pytest.raises(SystemExit, match="start: only"):
        _profile(engine(tmp_path), parse("start"))
