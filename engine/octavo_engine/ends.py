"""Ends of choices that never ran, or whose core is gone: no counts, only the reason."""

from __future__ import annotations

from octavo_engine.messages import EndEvent, LoadReport, StepFrame
from octavo_engine.sequence import FinishReason


def bare_end(key: int, choice: int, reason: FinishReason, error: str, *, last: bool) -> EndEvent:
    """Return an end without counts or times."""
    return EndEvent(
        key=key,
        choice=choice,
        reason=reason,
        last=last,
        stop_token_id=None,
        output_tokens=0,
        cached_tokens=0,
        first_planned_ns=None,
        first_token_ns=None,
        last_token_ns=None,
        num_prefill_steps=0,
        num_preemptions=0,
        num_recomputed_tokens=0,
        peak_pages=0,
        error=error,
    )


def bare_ends(key: int, choices: set[int], reason: FinishReason, error: str) -> list[EndEvent]:
    """Return the ends of all open choices of a request."""
    return [bare_end(key, choice, reason, error, last=choice == max(choices)) for choice in sorted(choices)]


def frame_of_ends(step_id: int, now_ns: int, ends: list[EndEvent], load: LoadReport) -> StepFrame:
    """Return a step frame that tells of nothing but ends."""
    return StepFrame(
        step_id=step_id,
        started_ns=now_ns,
        ended_ns=now_ns,
        num_tokens=0,
        keys=[],
        choices=[],
        positions=[],
        token_ids=[],
        logprobs=[],
        started=[],
        chunks=[],
        preempted=[],
        ends=ends,
        pages_stored=[],
        pages_evicted=[],
        load=load,
    )
