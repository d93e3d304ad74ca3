"""`octavo bench` with real processes on a tiny random model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from octavo.random_model import write_random_model
from octavo.workloads import parse
from octavo_client import redis_server
from octavo_client.bench.router_session import router_session
from octavo_client.bench.session import Subject
from octavo_client.cli.main import app
from octavo_client.redis_server import RedisMissing
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(240)

SMALL = ("--threads", "1", "--numerics", "exact")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "tiny", "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results" / "machine.jsonl"


async def bench(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, ["bench", *SMALL, *arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_suite_measures_both_targets_and_survives_a_failure(model: Path, output: Path) -> None:
    workloads = ["start", "prefill:1:4096", "decode:2:40", "serve:2:16:100"]  # 4096 tokens are too long for the model
    flags = [flag for name in workloads for flag in ("--workload", name)]
    settings = ["--setting", "kv_memory=16MiB", "--setting", "dtype=float32", "--offline-setting", "itl_target_ms=0"]
    result = await bench("--suite", "gpu", "--shape", str(model), "--output", str(output), *flags, *settings)
    assert result.exit_code == 1, result.stderr
    kept = {(line["target"], line["workload"], line.get("metric")): line for line in lines(output)}
    assert kept["offline", "prefill:1:4096", None]["error"].startswith("RuntimeError")
    assert {key[2] for key in kept if key[:2] == ("router", "serve:2:16:100")} == {
        "out_tok_s",
        "ttft_ms_p50",
        "ttft_ms_p99",
        "itl_ms_p50",
        "itl_ms_p99",
    }
    for target in ("offline", "router"):
        assert kept[target, "start", "seconds"]["value"] > 0
        assert kept[target, "serve:2:16:100", "out_tok_s"]["value"] > 0
    step = kept["offline", "decode:2:40", "ms_per_step"]
    assert 0 < step["floor"] < step["value"]
    assert step["fraction"] == pytest.approx(step["floor"] / step["value"], rel=0.01)
    assert (step["variant"], step["dtype"], step["shape"]) == ("exact", "float32", "tiny")
    assert "decode:2:40" in result.stdout


async def test_the_closed_loop_measures_offline_and_through_the_router(model: Path, output: Path) -> None:
    sizes = ["--requests", "4", "--prompt-len", "16", "--output-len", "4", "--repeat", "1", "-c", "2"]
    result = await bench("--suite", "cpu", "--model", str(model), "--peer", "none", "--output", str(output), *sizes)
    assert result.exit_code == 0, result.stderr
    assert [(line["target"], line["workload"], line["shape"]) for line in lines(output)] == [
        ("offline", "closed:2:16:4", "tiny"),
        ("router", "closed:2:16:4", "tiny"),
    ]
    assert "c = 2" in result.stdout


async def test_serving_is_measured_without_a_redis_server(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise RedisMissing("not here")

    monkeypatch.setattr(redis_server, "server_binary", missing)
    subject = Subject(
        directory=model,
        numerics="exact",
        settings={"kv_memory": "16MiB"},
        threads=1,
        highest_id=384,
    )
    async with router_session(subject) as session:
        assert session.numerics == "exact"
        figures = await session.measure(parse("serve:1:16:4"))
    assert figures[0].metric == "out_tok_s"
    assert figures[0].runs[0] > 0


@pytest.mark.parametrize(
    "arguments", [["--workload", "dance"], ["--shape", "no-such"], ["--target", "moon"], ["--setting", "x"]]
)
async def test_a_wrong_flag_is_refused_in_one_line(model: Path, arguments: list[str]) -> None:
    result = await bench("--suite", "gpu", "--shape", str(model), *arguments)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
