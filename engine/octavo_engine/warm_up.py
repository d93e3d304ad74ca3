"""Plans that make a runner compile every kernel before the first request."""

from __future__ import annotations

from octavo_engine.sequence import Request, Row, Sampling, Sequence, StepPlan

_SAMPLINGS = (Sampling(temperature=0.0), Sampling(temperature=1.0, top_k=2, top_p=0.9, min_p=0.1))


def warm_up_plans() -> tuple[StepPlan, ...]:
    """Return a step of chunks, one of decodes, and one of both, each with greedy and drawn tokens.

    They copy page 0 to page 1, and write to page 0: nobody may hold these yet.
    """
    shapes = (((0, 2), (0, 2)), ((2, 1), (2, 1)), ((2, 1), (0, 2)))
    return tuple(
        StepPlan(
            step_id=0,
            rows=tuple(
                _row(slot, sampling, start, num_tokens)
                for slot, (sampling, (start, num_tokens)) in enumerate(zip(_SAMPLINGS, shape, strict=True))
            ),
            copies=((0, 1),),
        )
        for shape in shapes
    )


def chunks_plan(num_tokens: int, max_len: int, page_size: int) -> StepPlan:
    """Return a step of whole prompts of so many tokens together, each of at most `max_len`; all their pages are page 0."""
    lengths = [min(max_len, num_tokens - first) for first in range(0, num_tokens, max_len)]
    return StepPlan(
        step_id=0,
        rows=tuple(
            _row(slot, _SAMPLINGS[0], 0, length, -(-length // page_size)) for slot, length in enumerate(lengths)
        ),
    )


def penalty_plan() -> StepPlan:
    """Return a step of one chunk whose token is drawn with a penalty. It writes to page 0."""
    return StepPlan(step_id=0, rows=(_row(0, Sampling(repetition_penalty=1.1), 0, 2),))


def _row(slot: int, sampling: Sampling, start: int, num_tokens: int, num_pages: int = 1) -> Row:
    request = Request(key=slot, prompt=[0] * (start + num_tokens), sampling=sampling)
    return Row(
        sequence=Sequence(request=request, tokens=list(request.prompt)),
        start=start,
        num_tokens=num_tokens,
        samples=True,
        output_position=0,
        block_table=(0,) * num_pages,
        slot=slot,
        generation=0,
    )
