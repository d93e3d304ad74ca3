from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "render"


@pytest.fixture(scope="module")
def render() -> ModuleType:
    loader = SourceFileLoader("bench_render", str(SCRIPT))
    spec = importlib.util.spec_from_loader("bench_render", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def line(**changes: Any) -> dict[str, Any]:
    return {
        "date": "2030-01-01T00:00:00+00:00",
        "commit": "abc",
        "target": "offline",
        "variant": "fast",
        "workload": "decode:1:1024",
        "metric": "ms_per_step",
        "value": 2.0,
        "floor": 1.0,
        "fraction": 0.5,
        "peer": {"engine": "other", "version": "1", "hardware": "card B", "value": 4.0, "fraction": 0.25},
    } | changes


def test_a_row_has_each_mode_the_limit_and_the_peer_with_its_card(render: ModuleType) -> None:
    table = render.gpu_table("card A", "tiny", [line(), line(variant="exact", value=3.0, fraction=0.333)])
    assert "| Octavo `fast` | Octavo `exact` | best possible | other 1 on card B |" in table
    assert "| decode:1:1024 | ms_per_step | 2 (50%) | 3 (33%) | 1 | 4 (25%) |" in table


def test_the_newest_line_counts_and_a_failure_does_not_replace_it(render: ModuleType) -> None:
    failed = line()
    for key in ("metric", "value", "floor", "fraction"):
        del failed[key]
    table = render.gpu_table("card A", "tiny", [line(value=9.0), line(value=7.0), failed | {"error": "went wrong"}])
    assert "| 7 (50%) |" in table
    assert "| 9 (50%) |" not in table


def test_text_between_markers_is_exchanged_and_nothing_else(render: ModuleType) -> None:
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb"
    assert render.replaced(text, "x", "new") == "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb"
    assert render.replaced(text, "y", "new") == text


def test_large_numbers_keep_all_digits_before_the_point(render: ModuleType) -> None:
    assert [render.number(value) for value in (41_506.2, 13.347, 0.789)] == ["41,506", "13.3", "0.789"]


def test_a_column_of_the_cpu_table_holds_one_run(render: ModuleType) -> None:
    def closed(variant: str, minute: int, value: float) -> dict[str, Any]:
        return {
            "date": f"2030-01-01T00:{minute:02}:00+00:00",
            "commit": "abc",
            "hardware": "2 cores",
            "shape": "tiny",
            "engine": "octavo",
            "target": "offline",
            "variant": variant,
            "dtype": "float32",
            "workload": "closed:8:128:64",
            "value": value,
        }

    # In the file's order the older run stands last.
    table = render.cpu_table([closed("exact", 30, 50.0), closed("exact", 10, 90.0), closed("fast", 10, 91.0)])
    assert "| octavo `exact` in float32 | 50 |" in table
    assert "`fast`" not in table
