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
    """What a run gave. Times are in seconds."""

    output_tokens: int = 0
    seconds: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    inter_token_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, prefill included."""
        return self.output_tokens / self.seconds


async def run_closed_loop(client: OctavoClient, jobs: Sequence[Job], concurrency: int) -> ServingResult:
    """Run jobs greedily with a fixed number in flight."""
    result = ServingResult()
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await _run_one(client, job, result)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    result.seconds = time.perf_counter() - started
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
            is_first = False
        else:
            # Tokens of one message came at once: their gaps are the message's gap, shared.
            result.inter_token_s += [(now - before) / event.num_tokens] * event.num_tokens
        result.output_tokens += event.num_tokens
        before = now
