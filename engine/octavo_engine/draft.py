"""A step's plan while it is being made. Only the scheduler's `plan` uses it."""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from dataclasses import dataclass, field

from octavo_engine.pages import Copy
from octavo_engine.sequence import Row, Sequence


@dataclass(slots=True, kw_only=True)
class Draft:
    """What a step will compute, and what happened while that was decided.

    Attributes:
        num_tokens: tokens to compute for each sequence: decodes first, then prefills, each in order of importance.
        prefills: sequences in mid-prefill that can go on.
        copies: pages to copy before the step.
        has_preempted: a sequence lost its pages for the sake of this step.
    """

    num_tokens: dict[Sequence, int] = field(default_factory=dict)
    prefills: list[Sequence] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    has_preempted: bool = False


def row_of(sequence: Sequence, num_tokens: int) -> Row:
    """Return the row that computes the next tokens of a running sequence."""
    assert sequence.slot is not None
    if len(sequence.frozen_table) != len(sequence.block_table):
        sequence.frozen_table = tuple(sequence.block_table)
    start, length = sequence.num_computed, sequence.length
    samples = start + num_tokens == length
    position = length - sequence.num_prompt
    sampling = sequence.request.sampling
    bans = samples and position < sampling.min_tokens
    return Row(
        sequence=sequence,
        start=start,
        num_tokens=num_tokens,
        samples=samples,
        output_position=position,
        block_table=sequence.frozen_table,
        slot=sequence.slot,
        generation=sequence.generation,
        banned_token_ids=tuple(sorted(sampling.stop_token_ids)) if bans else (),
    )
