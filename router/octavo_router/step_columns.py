"""The tokens of a step batch, which travel as columns: put together, or refused as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from octavo.errors import InternalError
from octavo.v1 import engine_pb2

MALFORMED_STEP: Final = "malformed_step"
"""Reason of the error for a batch that makes no sense."""


def tokens_of(step: engine_pb2.StepBatch) -> Iterator[tuple[int, int, int, int, float]]:
    """Return (stream id, choice, position, token id, log-probability) of each token.

    Raises:
        InternalError: the columns differ in length, so no token of the batch can be trusted.
    """
    stream_ids = list(step.stream_ids)
    count = len(stream_ids)
    choices = list(step.choices) or [0] * count
    logprobs = list(step.logprobs) or [0.0] * count
    lengths = [len(column) for column in (choices, step.positions, step.token_ids, logprobs)]
    if any(length != count for length in lengths):
        raise InternalError(
            MALFORMED_STEP,
            f"step {step.step_id} has {count} stream ids, but {lengths} choices, positions, token ids and logprobs",
        )
    return zip(stream_ids, choices, step.positions, step.token_ids, logprobs, strict=True)
