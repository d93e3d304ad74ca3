"""A closed loop of clients on the offline engine: as one request ends, the next one starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from octavo.workloads import Job

from octavo_engine import messages
from octavo_engine.bench.measured import Measured
from octavo_engine.bench.requests import submit
from octavo_engine.offline import OfflineEngine


def run_closed_loop(
    engine: OfflineEngine,
    jobs: Sequence[Job],
    concurrency: int,
    see: Callable[[messages.StepFrame], None] = lambda _frame: None,
) -> Measured:
    """Run jobs greedily with a fixed number in the engine at any time. The prefix cache starts empty.

    Args:
        engine: runs them.
        jobs: in the order in which clients take them.
        concurrency: how many clients.
        see: is told of each step.
    """
    engine.scheduler.flush()
    waiting: Iterator[Job] = iter(jobs)

    def next_jobs(count: int) -> list[messages.Submit]:
        return [submit(job) for job in itertools.islice(waiting, count)]

    def on_frame(frame: messages.StepFrame) -> list[messages.Submit]:
        see(frame)
        return next_jobs(len(frame.ends))

    started = time.perf_counter()
    outputs = engine.generate(next_jobs(concurrency), on_frame=on_frame)
    seconds = time.perf_counter() - started
    tokens = sum(len(output.token_ids) for output in outputs.values())
    if tokens != sum(job.max_tokens for job in jobs):
        raise RuntimeError(f"{tokens} output tokens instead of {sum(job.max_tokens for job in jobs)}")
    return Measured(tokens, seconds)
