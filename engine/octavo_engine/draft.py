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
        copies: pages to copy before the step.
        has_preempted: a sequence lost its pages for the sake of this step.
        has_stalled: a sequence sits this step out, because pages come free only when the steps in flight are read.
    """

    num_tokens: dict[Sequence, int] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)
    has_preempted: bool = False
    has_stalled: bool = False


def row_of(sequence: Sequence, num_tokens: int) -> Row:
    """Return the row that computes the next tokens of a running sequence."""
    sampling, start, position = sequence.request.sampling, sequence.num_computed, sequence.num_output
    assert sequence.slot is not None
    if len(sequence.frozen_table) != len(sequence.block_table):
        sequence.frozen_table = tuple(sequence.block_table)
    samples = start + num_tokens == sequence.length
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
