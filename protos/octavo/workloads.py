"""Workloads that engines are measured on: token ids only, fixed seeds, so that every target runs the same prompts."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LOWEST_ID = 10
_HIGHEST_ID = 32_000


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt of token ids, and how many tokens to generate whatever they are."""

    prompt: list[int]
    max_tokens: int


def uniform(*, count: int, prompt_len: int, output_len: int, seed: int = 2) -> list[Job]:
    """Return `count` jobs of one shape with random prompts that share nothing."""
    rng = random.Random(seed)  # noqa: S311  # reproducible test data
    return [Job(_random_ids(rng, prompt_len), output_len) for _ in range(count)]


def _random_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_LOWEST_ID, _HIGHEST_ID) for _ in range(count)]
