"""A request and its sequences as the scheduler sees them: tokens, pages, progress. No tensors, no clocks of its own.

Ownership: the scheduler alone creates and changes a `Sequence`; everything else reads it. One request makes
`sampling.n` sequences; the first computes the prompt, the others fork from it.

    tokens   |<------ prompt ------>|<-- output (committed by earlier attempts, then generated here) -->|
    KV       |<--------- num_computed -------->|<-- to compute -->|   num_pending tokens are sampled but not yet read
    pages    | block_table: one page id for each page_size tokens, at least of the computed and planned part |
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field

from octavo.page_hash import PrefixHasher


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when a sequence ends. Validated; every field has its final value."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    n: int = 1

    @property
    def has_penalties(self) -> bool:
        """Whether what a sequence holds already makes tokens more or less likely."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0 or self.repetition_penalty != 1


class Priority(enum.IntEnum):
    """Class of service; a lower value is served first."""

    INTERACTIVE = 0
    BATCH = 1


class FinishReason(enum.IntEnum):
    """Why a sequence ended; values equal octavo.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ERROR = 5
    HANDOFF = 6


class State(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked of this engine.

    Attributes:
        key: unique among all requests of this process, chosen by the caller, never reused.
        prompt: prompt token ids, at least one.
        sampling: how tokens are chosen. `sampling.stop_token_ids` already holds the model's end-of-sequence ids
            unless the client asked to ignore them.
        priority: class of service.
        arrival_ns: monotonic time of arrival.
        deadline_ns: monotonic time after which the result is of no use; None means never.
        page_hash_root: root of its page hashes, with the tenant's salt.
        committed: output of each choice by earlier attempts; empty for a fresh request.
        finished_choices: choices that had ended before a move; nothing is generated for them.
        expected_cached: leading prompt tokens that its sender expects to be cached when it runs; only load reports use it.
    """

    key: int
    prompt: list[int]
    sampling: Sampling
    priority: Priority = Priority.INTERACTIVE
    arrival_ns: int = 0
    deadline_ns: int | None = None
    page_hash_root: bytes = b""
    committed: tuple[tuple[int, ...], ...] = ()
    finished_choices: frozenset[int] = frozenset()
    expected_cached: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One choice of a request: its tokens, pages and progress.

    Attributes:
        request: the request it belongs to.
        choice: index of the choice.
        tokens: prompt followed by output, as far as known to the host.
        num_computed: leading tokens whose keys and values are written, or will be by a step already planned.
        num_pending: tokens sampled by planned steps whose results are not yet read; at most the pipeline's depth.
        block_table: page ids; entry i holds tokens [i * page_size, (i + 1) * page_size). Within one generation it only
            grows at its end: no entry changes.
        page_hashes: hashes of the leading full pages known so far.
        hasher: has made them, and makes the next; None before the first.
        slot: row of the device state while RUNNING, else None.
        generation: rises each time a slot is given to it, and no two sequences ever have the same; results of another
            generation are void.
        credit: most output tokens the reader takes; None means unlimited.
        num_cached: prompt tokens found in the prefix cache when it first ran.
        prefill_end: its length at the last admission: computing below it is prefill, from there on decode.
        num_published: leading pages that are resident, or twins of resident ones.
        max_computed: most tokens ever computed; computing below it again is recomputation.
        last_step: id of the last step planned for it; 0 before the first.
        frozen_table: the block table as it stands in its latest row.
        max_length: tokens at which it ends with LENGTH.
        ceiling: tokens at which it pauses or ends: `max_length`, or less by its credit.
    """

    request: Request
    choice: int = 0
    tokens: list[int]
    num_computed: int = 0
    num_pending: int = 0
    block_table: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    hasher: PrefixHasher | None = None
    state: State = State.WAITING
    slot: int | None = None
    generation: int = 0
    credit: int | None = None
    num_cached: int = 0
    num_preemptions: int = 0
    num_recomputed: int = 0
    num_prefill_steps: int = 0
    peak_pages: int = 0
    first_planned_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    prefill_end: int = 0
    num_published: int = 0
    max_computed: int = 0
    last_step: int = 0
    frozen_table: tuple[int, ...] = ()
    max_length: int = sys.maxsize
    ceiling: int = sys.maxsize

    @property
    def num_prompt(self) -> int:
        """Prompt tokens."""
        return len(self.request.prompt)

    @property
    def length(self) -> int:
        """Tokens including those sampled but not yet read."""
        return len(self.tokens) + self.num_pending

    @property
    def num_output(self) -> int:
        """Output tokens including those sampled but not yet read."""
        return self.length - self.num_prompt

    @property
    def num_uncomputed(self) -> int:
        """Tokens still without keys and values: 1 while decoding."""
        return self.length - self.num_computed

    @property
    def seed(self) -> int:
        """Seed of this choice's noise."""
        return (self.request.sampling.seed + self.choice) % 2**64

    @property
    def num_prefill_left(self) -> int:
        """Tokens of the prefill that no step has been planned for: 0 while decoding."""
        return max(0, self.prefill_end - self.num_computed)

    @property
    def is_paused(self) -> bool:
        """Whether the reader takes no more output for now."""
        return self.credit is not None and self.num_output >= self.credit


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One sequence's part of a step: tokens [start, start + num_tokens) are computed.

    Nobody changes a row. It is not frozen because a frozen dataclass takes several times as long to make, and a step
    makes hundreds.

    Attributes:
        sequence: whose tokens.
        start: position of the first. One step ahead, a decode's token may not have reached `sequence.tokens` yet
            (start == len(sequence.tokens)): it is the one that the slot sampled in the step before.
        num_tokens: how many.
        samples: whether the last one's logits give a new token.
        output_position: absolute output position of that new token (the noise position).
        block_table: page ids that cover at least every token up to start + num_tokens, as of this step. Rows of one
            generation start with the same entries; while nothing is added they share one tuple.
        slot: the sequence's slot in this step.
        generation: the sequence's generation in this step: another value in a slot means another occupant.
        banned_token_ids: ids that must not be sampled: the stop ids while the output is shorter than `min_tokens`.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    output_position: int
    block_table: tuple[int, ...]
    slot: int
    generation: int
    banned_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one step computes.

    Attributes:
        step_id: rises by one with each plan.
        rows: decodes first, then prefill chunks.
        copies: pages (source, destination) to copy before anything is written: copy-on-write. Destinations are all
            different and none is a source, so the order does not matter.
    """

    step_id: int
    rows: tuple[Row, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(row.num_tokens for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Result of a step: one entry per row of the plan that samples, in the plan's order.

    Attributes:
        token_ids: chosen ids.
        logprobs: natural logarithms of their probabilities under the model, before temperature and truncation.
    """

    token_ids: list[int]
    logprobs: list[float]
