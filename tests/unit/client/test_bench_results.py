from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from octavo_client.bench.peers import PeerFigure
from octavo_client.bench.results import Result, ResultFile

PEER = PeerFigure(engine="other", version="1", hardware="card A", value=8.0, fraction=0.5)
STEP = Result(
    engine="octavo",
    variant="fast",
    target="offline",
    shape="tiny",
    workload="decode:1:1024",
    metric="ms_per_step",
    runs=(5.0, 4.0, 9.0),
    card="card A",
    floor=4.0,
    peer=PEER,
    details={"dtype": "bfloat16"},
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_median_and_every_run(tmp_path: Path) -> None:
    path = tmp_path / "results" / "card.jsonl"
    ResultFile(path, commit="abc").append([STEP])
    (line,) = lines(path)
    assert (line["value"], line["runs"], line["metric"]) == (5.0, [5.0, 4.0, 9.0], "ms_per_step")
    assert (line["commit"], line["hardware"], line["dtype"]) == ("abc", "card A", "bfloat16")


def test_results_are_appended_as_they_come(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "card.jsonl", commit="abc")
    file.append([STEP])
    file.append([replace(STEP, workload="decode:2:1024")])
    assert [line["workload"] for line in lines(tmp_path / "card.jsonl")] == ["decode:1:1024", "decode:2:1024"]


def test_a_time_below_the_peers_is_a_ratio_above_one() -> None:
    assert STEP.fraction == pytest.approx(0.8)
    assert STEP.ratio == pytest.approx(1.6)


def test_a_rate_below_the_peers_is_a_ratio_below_one() -> None:
    rate = replace(STEP, metric="out_tok_s", runs=(4.0,), floor=16.0)
    assert rate.fraction == pytest.approx(0.25)
    assert rate.ratio == pytest.approx(0.5)


def test_tokens_that_came_at_once_have_neither_share_nor_ratio(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    ResultFile(path, commit="abc").append([replace(STEP, metric="itl_ms_p50", runs=(0.0,))])
    (line,) = lines(path)
    assert line["value"] == 0
    assert "fraction" not in line
    assert "ratio" not in line


def test_a_peer_on_another_card_is_kept_with_its_card_and_without_a_ratio(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    ResultFile(path, commit="abc").append([replace(STEP, card="card B")])
    (line,) = lines(path)
    assert line["peer"] == {"engine": "other", "version": "1", "hardware": "card A", "value": 8.0, "fraction": 0.5}
    assert "ratio" not in line


def test_a_failure_is_kept_without_a_value(tmp_path: Path) -> None:
    path = tmp_path / "card.jsonl"
    failed = Result(
        engine="octavo", variant="exact", target="offline", shape="tiny", workload="start", error="out of memory"
    )
    ResultFile(path, commit="abc").append([failed])
    (line,) = lines(path)
    assert line["error"] == "out of memory"
    assert "value" not in line
    assert "cores" in line["hardware"]
