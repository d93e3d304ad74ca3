"""Workloads that engines are measured on: token ids only, fixed seeds, so that every target runs the same prompts.

A workload is named by what it does and its sizes, such as "decode:32:1024"; sizes left out take their defaults. Every
engine that is compared runs the very same token ids.

| workload | sizes | what is measured |
| --- | --- | --- |
| single_stream | prompt, output | output tokens per second of one request, prefill included |
| decode | batch, context | milliseconds of a step: (136 output tokens - 8 output tokens) / 128, prompts cached before |
| steady_batch | count, prompt, output | seconds until all have ended |
| prefill | count, prompt | prompt tokens per second, one output token each |
| shared_prefix | groups, per group, prefix, suffix, output | seconds until all have ended, from an empty cache |
| throughput | count, shortest, longest | output tokens per second, lengths of prompts and outputs drawn evenly |
| serve | concurrency, prompt, output | a closed loop of clients: output tokens per second; through the router also TTFT, ITL |
| start | | seconds from the start of the process to the first token |
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_LOWEST_ID: Final = 10
HIGHEST_ID: Final = 32_000
"""Prompts hold ids below this one; a smaller vocabulary needs a lower limit."""

DECODE_OUTPUTS: Final = (8, 136)
"""Output tokens of the two runs whose difference gives the time of a decode step."""

# Rounds of requests that each client of a closed loop makes. One client alone is slow, and steady.
_ROUNDS_OF_ONE: Final = 4
_FEW_CLIENTS: Final = 32
_ROUNDS_OF_FEW: Final = 3
_ROUNDS_OF_MANY: Final = 2
_FIRST_LOOP_SEED: Final = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt of token ids, and how many tokens to generate whatever they are."""

    prompt: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A named workload; made by `parse`.

    Attributes:
        kind: such as "decode".
        sizes: by name, in the order of the workload's name.
    """

    kind: str
    sizes: dict[str, int]

    @property
    def name(self) -> str:
        """Name with all sizes, such as "decode:32:1024"."""
        return ":".join([self.kind, *map(str, self.sizes.values())])

    def jobs(self, highest_id: int = HIGHEST_ID) -> list[Job]:
        """Return the jobs, all to be submitted at once; those of `serve` are one for each client."""
        return _JOBS[self.kind](highest_id=highest_id, **self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """The requests of a closed loop: `uniform` makes them of `count`, `seed` and the lengths."""

    concurrency: int
    count: int
    seed: int
    prompt_len: int
    output_len: int
    highest_id: int

    def jobs(self) -> list[Job]:
        """Return the requests, in the order in which clients take them."""
        return uniform(
            count=self.count,
            prompt_len=self.prompt_len,
            output_len=self.output_len,
            seed=self.seed,
            highest_id=self.highest_id,
        )


def parse(name: str) -> Workload:
    """Return the workload of a name such as "decode:32:1024".

    Raises:
        ValueError: no such workload, too many sizes, or a size that is no positive number.
    """
    kind, *given = name.split(":")
    if kind not in _SIZES:
        raise ValueError(f"no workload {kind!r}; there are {', '.join(_SIZES)}")
    sizes = dict(_SIZES[kind])
    if len(given) > len(sizes):
        raise ValueError(f"{name!r} has {len(given)} sizes; {kind} takes {', '.join(sizes) or 'none'}")
    for size, value in zip(sizes, given, strict=False):
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{name!r}: {size} is {value!r}, which is no positive number")
        sizes[size] = int(value)
    return Workload(kind, sizes)


def uniform(*, count: int, prompt_len: int, output_len: int, seed: int = 2, highest_id: int = HIGHEST_ID) -> list[Job]:
    """Return `count` jobs of one shape with random prompts that share nothing."""
    rng = _random(seed)
    return [Job(_random_ids(rng, prompt_len, highest_id), output_len) for _ in range(count)]


def closed_loop(workload: Workload, highest_id: int = HIGHEST_ID) -> ClosedLoop:
    """Return all requests of a workload `serve`; those of each concurrency have prompts of their own."""
    concurrency = workload.sizes["concurrency"]
    return ClosedLoop(
        concurrency=concurrency,
        count=_num_requests(concurrency),
        seed=_FIRST_LOOP_SEED + concurrency,
        prompt_len=workload.sizes["prompt_len"],
        output_len=workload.sizes["output_len"],
        highest_id=highest_id,
    )


def _num_requests(concurrency: int) -> int:
    if concurrency == 1:
        return _ROUNDS_OF_ONE
    return concurrency * (_ROUNDS_OF_FEW if concurrency <= _FEW_CLIENTS else _ROUNDS_OF_MANY)


def _single_stream(*, prompt_len: int, output_len: int, highest_id: int) -> list[Job]:
    return uniform(count=1, prompt_len=prompt_len, output_len=output_len, seed=1, highest_id=highest_id)


def _decode(*, batch: int, context: int, highest_id: int) -> list[Job]:
    return uniform(count=batch, prompt_len=context, output_len=DECODE_OUTPUTS[1], seed=5, highest_id=highest_id)


def _steady_batch(*, count: int, prompt_len: int, output_len: int, highest_id: int) -> list[Job]:
    return uniform(count=count, prompt_len=prompt_len, output_len=output_len, seed=2, highest_id=highest_id)


def _prefill(*, count: int, prompt_len: int, highest_id: int) -> list[Job]:
    return uniform(count=count, prompt_len=prompt_len, output_len=1, seed=3, highest_id=highest_id)


def _shared_prefix(
    *, groups: int, per_group: int, prefix_len: int, suffix_len: int, output_len: int, highest_id: int
) -> list[Job]:
    rng = _random(4)
    jobs: list[Job] = []
    for _ in range(groups):
        prefix = _random_ids(rng, prefix_len, highest_id)
        jobs += [Job(prefix + _random_ids(rng, suffix_len, highest_id), output_len) for _ in range(per_group)]
    rng.shuffle(jobs)
    return jobs


def _throughput(*, count: int, shortest: int, longest: int, highest_id: int) -> list[Job]:
    rng = _random(0)
    jobs: list[Job] = []
    for _ in range(count):
        prompt = _random_ids(rng, rng.randint(shortest, longest), highest_id)
        jobs.append(Job(prompt, rng.randint(shortest, longest)))
    return jobs


def _serve(*, concurrency: int, prompt_len: int, output_len: int, highest_id: int) -> list[Job]:
    return uniform(count=concurrency, prompt_len=prompt_len, output_len=output_len, seed=6, highest_id=highest_id)


def _start(*, highest_id: int) -> list[Job]:
    return uniform(count=1, prompt_len=16, output_len=1, seed=7, highest_id=highest_id)


_SIZES: Final[dict[str, dict[str, int]]] = {
    "single_stream": {"prompt_len": 1024, "output_len": 256},
    "decode": {"batch": 32, "context": 1024},
    "steady_batch": {"count": 64, "prompt_len": 1024, "output_len": 128},
    "prefill": {"count": 16, "prompt_len": 4096},
    "shared_prefix": {"groups": 16, "per_group": 16, "prefix_len": 2048, "suffix_len": 128, "output_len": 64},
    "throughput": {"count": 512, "shortest": 100, "longest": 1024},
    "serve": {"concurrency": 32, "prompt_len": 1024, "output_len": 256},
    "start": {},
}
_JOBS: Final[dict[str, Callable[..., list[Job]]]] = {
    "single_stream": _single_stream,
    "decode": _decode,
    "steady_batch": _steady_batch,
    "prefill": _prefill,
    "shared_prefix": _shared_prefix,
    "throughput": _throughput,
    "serve": _serve,
    "start": _start,
}


def _random(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # reproducible test data


def _random_ids(rng: random.Random, count: int, highest_id: int) -> list[int]:
    return [rng.randrange(_LOWEST_ID, highest_id) for _ in range(count)]
