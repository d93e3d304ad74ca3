from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from octavo.random_model import write_random_model
from octavo.workloads import parse
from octavo_engine.bench.offline_runs import OfflineRuns
from support.tiny_models import engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_random_model(directory, "tiny")
    return directory


@pytest.fixture(scope="module")
def runs(model: Path) -> OfflineRuns:
    return OfflineRuns(engine(model))


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("start", "seconds"),
        ("decode:2:40", "ms_per_step"),
        ("single_stream:20:12", "out_tok_s"),
        ("steady_batch:3:20:6", "seconds"),
        ("prefill:2:64", "in_tok_s"),
        ("shared_prefix:2:3:32:8:4", "seconds"),
        ("throughput:6:4:20", "out_tok_s"),
        ("serve:2:16:4", "out_tok_s"),
    ],
)
def test_every_workload_gives_its_metric(runs: OfflineRuns, name: str, metric: str) -> None:
    measured, values = runs.measure(parse(name))
    assert measured == metric
    assert 1 <= len(values) <= 3
    assert all(value > 0 for value in values)


class Unprepared:
    """A runner that still has two steps to prepare."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.num_left = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    @property
    def is_warm(self) -> bool:
        return self.num_left == 0

    def warm_next(self) -> None:
        self.num_left -= 1


def test_steps_are_prepared_before_all_but_a_start_is_measured(model: Path) -> None:
    octavo = engine(model)
    octavo._runner = runner = Unprepared(octavo._runner)
    runs = OfflineRuns(octavo)
    runs.measure(parse("start"))
    assert runner.num_left == 2
    runs.measure(parse("single_stream:20:2"))
    assert runner.num_left == 0


def test_a_request_that_the_engine_refuses_is_no_result(runs: OfflineRuns) -> None:
    with pytest.raises(RuntimeError, match="0 output tokens instead of 1"):
        runs.measure(parse("prefill:1:4096"))


def test_decode_steps_are_not_measured_where_the_prompts_do_not_stay_cached(model: Path) -> None:
    # Pages for both outputs, but not for both prompts at once: what one caches the other evicts.
    small = OfflineRuns(engine(model, num_pages=24))
    with pytest.raises(RuntimeError, match="page pool is too small"):
        small.measure(parse("decode:2:200"))
