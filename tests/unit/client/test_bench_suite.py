from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from octavo.model_directory import ModelNotFound
from octavo.workloads import Workload, closed_loop, parse
from octavo_client.bench import suite
from octavo_client.bench.load_processes import num_processes
from octavo_client.bench.results import Result
from octavo_client.bench.roofline import Ceilings
from octavo_client.bench.router_session import percentile
from octavo_client.bench.serving_load import ServingResult, joined
from octavo_client.bench.session import Figure, MeasureFailed, Session, Subject
from octavo_client.bench.suite import Suite, SuiteOptions


class Sessions:
    """Sessions that run nothing: a workload named in `broken` fails, a mode named in `unloadable` does not load."""

    def __init__(self, *, broken: Sequence[str] = (), unloadable: Sequence[str] = ()) -> None:
        self.broken = broken
        self.unloadable = unloadable
        self.loads: list[str] = []
        self.runs: list[str] = []

    @asynccontextmanager
    async def open(self, subject: Subject) -> AsyncIterator[Session]:
        self.loads.append(subject.numerics)
        if subject.numerics in self.unloadable:
            raise MeasureFailed("does not load")
        yield _Session(self, subject)


class _Session:
    dtype = "bfloat16"

    def __init__(self, sessions: Sessions, subject: Subject) -> None:
        self._sessions = sessions
        self.numerics = subject.numerics

    async def measure(self, workload: Workload) -> list[Figure]:
        self._sessions.runs.append(workload.name)
        if workload.name in self._sessions.broken:
            raise MeasureFailed("went wrong")
        return [Figure("seconds", (2.0,), {})]


@pytest.fixture(autouse=True)
def no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceilings are known, and no process is started for them."""

    async def known(self: Suite) -> None:
        self._ceilings = Ceilings(copy_bytes_s=1e9, read_bytes_s=1e9, gemm_flop_s=1e12, sustained_flop_s=8e11)

    monkeypatch.setattr(suite.Suite, "_measure_ceilings", known)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))


async def run(
    sessions: Sessions,
    workloads: Sequence[str] | None,
    numerics: Sequence[str] = ("fast",),
    limit_s: float | None = None,
    shape: str = "tiny",
) -> tuple[list[Result], list[str]]:
    results: list[Result] = []
    told: list[str] = []
    options = SuiteOptions(shapes=[shape], workloads=workloads, numerics=numerics, targets=["offline"], limit_s=limit_s)
    await Suite(options, tell=told.append, keep=results.extend, sessions={"offline": sessions.open}).run()
    return results, told


async def test_one_load_runs_all_workloads_of_a_mode() -> None:
    sessions = Sessions()
    results, _ = await run(sessions, ["prefill:1:8", "steady_batch:1:8:2"], ["fast", "exact"])
    assert sessions.loads == ["fast", "exact"]
    assert [(result.variant, result.workload) for result in results] == [
        ("fast", "prefill:1:8"),
        ("fast", "steady_batch:1:8:2"),
        ("exact", "prefill:1:8"),
        ("exact", "steady_batch:1:8:2"),
    ]


async def test_results_that_a_power_limit_concerns_tell_the_rate_of_lasting_products() -> None:
    results, _ = await run(Sessions(), ["prefill:1:8", "steady_batch:1:8:2"])
    assert [result.details.get("sustained_flop_s") for result in results] == [8e11, None]


async def test_the_start_is_measured_first() -> None:
    sessions = Sessions()
    await run(sessions, ["prefill:1:8", "start"])
    assert sessions.runs == ["start", "prefill:1:8"]


async def test_after_a_failure_the_rest_runs_on_a_new_load() -> None:
    sessions = Sessions(broken=["prefill:1:8"])
    results, told = await run(sessions, ["prefill:1:8", "steady_batch:1:8:2"])
    assert sessions.loads == ["fast", "fast"]
    assert [result.error for result in results] == ["went wrong", None]
    assert any("FAILED: went wrong" in line for line in told)


async def test_a_mode_that_does_not_load_fails_as_a_whole_and_the_next_goes_on() -> None:
    sessions = Sessions(unloadable=["exact"])
    results, _ = await run(sessions, ["prefill:1:8", "start"], ["exact", "fast"])
    assert sessions.loads == ["exact", "fast"]
    assert [(result.variant, result.error) for result in results] == [
        ("exact", "does not load"),
        ("exact", "does not load"),
        ("fast", None),
        ("fast", None),
    ]


async def test_what_time_does_not_allow_is_kept_as_not_run() -> None:
    sessions = Sessions()
    results, _ = await run(sessions, ["prefill:1:8"], limit_s=-1)
    assert sessions.loads == []
    assert [result.error is not None and "not run" in result.error for result in results] == [True]


async def test_a_result_stands_beside_its_floor() -> None:
    (result,), told = await run(Sessions(), ["steady_batch:1:8:2"])
    assert result.floor is not None
    assert result.fraction == pytest.approx(result.floor / 2.0)
    assert any("of the best possible" in line for line in told)


async def test_what_serving_is_compared_with_is_measured_offline_too() -> None:
    sessions = Sessions()
    await run(sessions, None, shape="qwen3-0.6b")
    assert [name for name in sessions.runs if name.startswith("serve")] == ["serve:256:1024:256"]


async def test_an_unknown_shape_ends_the_suite_before_anything_runs() -> None:
    with pytest.raises(ModelNotFound, match="no model"):
        await run(Sessions(), ["start"], shape="no-such-shape")


def test_parts_of_a_load_join_to_the_time_of_all() -> None:
    parts = [
        ServingResult(output_tokens=10, started=5.0, ended=8.0, first_token_s=[0.1], inter_token_s=[0.2]),
        ServingResult(output_tokens=30, started=5.5, ended=9.0, first_token_s=[0.3], inter_token_s=[]),
    ]
    whole = joined(parts)
    assert (whole.output_tokens, whole.seconds, whole.tokens_per_s) == (40, 4.0, 10.0)
    assert (whole.first_token_s, whole.inter_token_s) == ([0.1, 0.3], [0.2])


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
    assert percentile([3.0], 99) == 3.0


def test_clients_spread_over_half_the_cores() -> None:
    assert [num_processes(clients, cores=16) for clients in (1, 32, 33, 256, 4096)] == [1, 1, 2, 8, 8]
    assert num_processes(256, cores=2) == 1


def test_each_client_makes_several_requests() -> None:
    loops = [closed_loop(parse(f"serve:{clients}:8:4")) for clients in (1, 8, 32, 128)]
    assert [loop.count for loop in loops] == [4, 24, 96, 256]
    assert all(len(loop.jobs()) == loop.count for loop in loops)
