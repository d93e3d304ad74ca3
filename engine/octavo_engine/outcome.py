"""What came of a step, and of everything that happened since the one before: the scheduler's only way to tell.

Events use the structures of `messages`, so that a step frame is built from them without copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo_engine.messages import ChunkEvent, EndEvent, PreemptedEvent, StartedEvent
from octavo_engine.sequence import FinishReason, Sequence


@dataclass(slots=True, kw_only=True)
class StepOutcome:
    """Tokens as columns of equal length, events in the order in which they happened, and changes of the prefix cache.

    Attributes:
        keys: request of each token.
        choices: choice of each token.
        positions: absolute output position of each token; committed output counts.
        token_ids: the tokens. A token that ends its choice is among them.
        logprobs: their log-probabilities.
        started: requests that ran for the first time.
        chunks: parts of prefills that were computed.
        preempted: sequences that lost their pages.
        ends: choices that ended.
        pages_stored: short hashes of pages that became reusable.
        pages_evicted: short hashes of pages that are gone.
    """

    keys: list[int] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    started: list[StartedEvent] = field(default_factory=list)
    chunks: list[ChunkEvent] = field(default_factory=list)
    preempted: list[PreemptedEvent] = field(default_factory=list)
    ends: list[EndEvent] = field(default_factory=list)
    pages_stored: list[int] = field(default_factory=list)
    pages_evicted: list[int] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (
            self.keys
            or self.started
            or self.chunks
            or self.preempted
            or self.ends
            or self.pages_stored
            or self.pages_evicted
        )


def end_event(
    sequence: Sequence, reason: FinishReason, *, is_last: bool, stop_token_id: int | None, error: str
) -> EndEvent:
    """Return the event that tells a sequence's end, with its counts and times."""
    return EndEvent(
        key=sequence.request.key,
        choice=sequence.choice,
        reason=reason,
        last=is_last,
        stop_token_id=stop_token_id,
        output_tokens=len(sequence.tokens) - sequence.num_prompt,
        cached_tokens=sequence.num_cached,
        first_planned_ns=sequence.first_planned_ns,
        first_token_ns=sequence.first_token_ns,
        last_token_ns=sequence.last_token_ns,
        num_prefill_steps=sequence.num_prefill_steps,
        num_preemptions=sequence.num_preemptions,
        num_recomputed_tokens=sequence.num_recomputed,
        peak_pages=sequence.peak_pages,
        error=error,
    )
