"""Benchmark jobs as the commands that a core takes."""

from __future__ import annotations

import itertools
import time

from octavo.page_hash import token_bytes
from octavo.workloads import Job

from octavo_engine import messages

_keys = itertools.count()


def submit(job: Job) -> messages.Submit:
    """Return a greedy request that generates exactly `job.max_tokens` tokens."""
    return messages.Submit(
        key=next(_keys),
        prompt=token_bytes(job.prompt),
        arrival_ns=time.monotonic_ns(),
        deadline_ns=None,
        page_hash_root=b"octavo-benchmark",
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        seed=0,
        max_tokens=job.max_tokens,
        min_tokens=0,
        stop_token_ids=[],
        n=1,
        priority=0,
        committed=[],
        finished_choices=[],
    )
