"""A closed loop of streaming clients against a router: what serving costs beside the offline engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.workloads import Job

from octavo_client.client import OctavoClient
from octavo_client.values import Chunk, Sampling


@dataclass(slots=True)
class ServingResult:
    """What a run gave. Times are in seconds; start and end by the machine's monotonic clock, which processes share."""

    output_tokens: int = 0
    started: float = 0.0
    ended: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    inter_token_s: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """From the first request to the last token."""
        return self.ended - self.started

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, prefill included."""
        return self.output_tokens / self.seconds


def joined(parts: Sequence[ServingResult]) -> ServingResult:
    """Return what several processes measured at the same time as one result."""
    return ServingResult(
        output_tokens=sum(part.output_tokens for part in parts),
        started=min(part.started for part in parts),
        ended=max(part.ended for part in parts),
        first_token_s=[value for part in parts for value in part.first_token_s],
        inter_token_s=[value for part in parts for value in part.inter_token_s],
    )


async def run_closed_loop(client: OctavoClient, jobs: Sequence[Job], concurrency: int) -> ServingResult:
    """Run jobs greedily with a fixed number in flight.

    Raises:
        ExceptionGroup: requests failed.
        RuntimeError: the router did not send as many tokens as were asked for.
    """
    result = ServingResult()
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await _run_one(client, job, result)

    result.started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    result.ended = time.monotonic()
    if result.output_tokens != sum(job.max_tokens for job in jobs):
        raise RuntimeError(f"{result.output_tokens} output tokens instead of {sum(job.max_tokens for job in jobs)}")
    return result


async def _run_one(client: OctavoClient, job: Job, result: ServingResult) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=job.max_tokens, ignore_eos=True)
    before = time.perf_counter()
    is_first = True
    async for event in client.generate(job.prompt, sampling=sampling):
        if not isinstance(event, Chunk) or not event.num_tokens:
            continue
        now = time.perf_counter()
        if is_first:
            result.first_token_s.append(now - before)
        else:
            result.inter_token_s.append(now - before)
        # Tokens of one message came at once: there is no gap between them.
        result.inter_token_s += [0.0] * (event.num_tokens - 1)
        is_first = False
        result.output_tokens += event.num_tokens
        before = now
