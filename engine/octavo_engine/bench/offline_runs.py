"""Runs named workloads on the offline engine: all requests at once, as in the workload's definition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from octavo.workloads import DECODE_OUTPUTS, HIGHEST_ID, Job, Workload, closed_loop

from octavo_engine.bench.closed_loop import run_closed_loop
from octavo_engine.bench.measured import Measured
from octavo_engine.bench.requests import submit
from octavo_engine.offline import OfflineEngine, Output

_WARM_UP_JOBS: Final = 64
_WARM_UP_TOKENS: Final = 16
# A run is repeated until so much time has been measured: short ones vary more.
_ENOUGH_S: Final = 1.5
_MOST_RUNS: Final = 3

Runs = list[float]
_T = TypeVar("_T")


class OfflineRuns:
    """Measures workloads on one engine, one after another."""

    def __init__(self, engine: OfflineEngine) -> None:
        self._engine = engine
        self._highest_id = min(HIGHEST_ID, engine.facts.vocab_size)
        self._measures: dict[str, Callable[[Workload], tuple[str, Runs]]] = {
            "single_stream": self._output_rate,
            "decode": self._decode,
            "steady_batch": self._seconds,
            "prefill": self._prefill,
            "shared_prefix": self._seconds,
            "throughput": self._output_rate,
            "serve": self._closed_loop,
            "start": self._once,
        }

    def measure(self, workload: Workload) -> tuple[str, Runs]:
        """Run a workload, after a warm-up; return the metric's name and the value of each run.

        All but the first token of a start finds its steps prepared, as after a moment without requests.

        Raises:
            ValueError: the workload needs a service.
            RuntimeError: the engine did not generate what was asked.
        """
        measure = self._measures.get(workload.kind)
        if measure is None:
            raise ValueError(f"{workload.kind} is not measured offline")
        if workload.kind != "start":
            self._engine.prepare()
        return measure(workload)

    def _output_rate(self, workload: Workload) -> tuple[str, Runs]:
        return "out_tok_s", [measured.tokens_per_s for measured in self._runs(workload.jobs(self._highest_id))]

    def _seconds(self, workload: Workload) -> tuple[str, Runs]:
        return "seconds", [measured.seconds for measured in self._runs(workload.jobs(self._highest_id))]

    def _prefill(self, workload: Workload) -> tuple[str, Runs]:
        jobs = workload.jobs(self._highest_id)
        prompt_tokens = sum(len(job.prompt) for job in jobs)
        return "in_tok_s", [prompt_tokens / measured.seconds for measured in self._runs(jobs)]

    def _once(self, workload: Workload) -> tuple[str, Runs]:
        seconds, _ = self._run(workload.jobs(self._highest_id))
        return "seconds", [seconds]

    def _closed_loop(self, workload: Workload) -> tuple[str, Runs]:
        """The rate that serving may come close to: the same requests with nothing between clients and engine."""
        loop = closed_loop(workload, self._highest_id)
        jobs = loop.jobs()
        run_closed_loop(self._engine, _cut(jobs[:_WARM_UP_JOBS], _WARM_UP_TOKENS), loop.concurrency)
        return "out_tok_s", [run_closed_loop(self._engine, jobs, loop.concurrency).tokens_per_s]

    def _decode(self, workload: Workload) -> tuple[str, Runs]:
        """Time a step by the difference of a longer and a shorter output, so that what both have drops out."""
        jobs = workload.jobs(self._highest_id)
        few, many = DECODE_OUTPUTS
        self._engine.scheduler.flush()
        self._run(_cut(jobs, 1))  # now the prompts are cached

        def pair() -> tuple[float, float]:
            short = self._run_cached(_cut(jobs, few))
            long = self._run_cached(_cut(jobs, many))
            return long - short, short + long

        self._run_cached(_cut(jobs, few))
        return "ms_per_step", [1e3 * difference / (many - few) for difference in _repeated(pair)]

    def _runs(self, jobs: Sequence[Job]) -> list[Measured]:
        self._engine.scheduler.flush()
        self._run(_cut(jobs[:_WARM_UP_JOBS], _WARM_UP_TOKENS))

        def run() -> tuple[Measured, float]:
            self._engine.scheduler.flush()
            seconds, _ = self._run(jobs)
            return Measured(sum(job.max_tokens for job in jobs), seconds), seconds

        return list(_repeated(run))

    def _run_cached(self, jobs: Sequence[Job]) -> float:
        seconds, outputs = self._run(jobs)
        page = self._engine.facts.page_size
        wanted = sum((len(job.prompt) - 1) // page * page for job in jobs)
        cached = sum(output.end.cached_tokens for output in outputs if output.end is not None)
        if cached < wanted:
            raise RuntimeError(f"only {cached} of {wanted} prompt tokens were cached: the page pool is too small")
        return seconds

    def _run(self, jobs: Sequence[Job]) -> tuple[float, list[Output]]:
        requests = [submit(job) for job in jobs]
        started = time.perf_counter()
        outputs = self._engine.generate(requests)
        seconds = time.perf_counter() - started
        wanted, tokens = sum(job.max_tokens for job in jobs), sum(len(each.token_ids) for each in outputs.values())
        if tokens != wanted:
            raise RuntimeError(f"{tokens} output tokens instead of {wanted}")
        return seconds, list(outputs.values())


def _repeated(run: Callable[[], tuple[_T, float]]) -> Iterator[_T]:
    """Yield values until the seconds that stand beside them are enough."""
    spent = 0.0
    for _ in range(_MOST_RUNS):
        value, seconds = run()
        yield value
        spent += seconds
        if spent >= _ENOUGH_S:
            return


def _cut(jobs: Sequence[Job], max_tokens: int) -> list[Job]:
    return [Job(job.prompt, min(job.max_tokens, max_tokens)) for job in jobs]
