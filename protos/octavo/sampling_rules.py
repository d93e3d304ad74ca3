"""What a request may ask of sampling: one rule for routers, which check a client's request, and engines, which trust none."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Final

from octavo.errors import InvalidRequest
from octavo.v1 import types_pb2

MAX_CHOICES: Final = 8
MAX_TEMPERATURE: Final = 100.0
MAX_STOP_TOKEN_IDS: Final = 128
MAX_PENALTY: Final = 2.0
"""Largest frequency and presence penalty; the negative is the least."""
MIN_REPETITION_PENALTY: Final = 0.01
MAX_REPETITION_PENALTY: Final = 100.0
"""Beyond these bounds logits would leave the range of the types that hold them."""
INVALID_SAMPLING: Final = "invalid_sampling"
"""Reason of the error; its field says what is wrong."""


def check_sampling(sampling: types_pb2.SamplingParams, *, vocab_size: int) -> None:
    """Check all of a request's sampling that engines heed. `top_k` has no upper limit: beyond the vocabulary it keeps all.

    Args:
        sampling: as it came.
        vocab_size: number of the model's token ids.

    Raises:
        InvalidRequest: the first field found wrong.
    """
    for holds, field, problem in _rules(sampling, vocab_size):
        if not holds:
            raise InvalidRequest(INVALID_SAMPLING, f"sampling.{field} {problem}", field=f"sampling.{field}")


def _rules(sampling: types_pb2.SamplingParams, vocab_size: int) -> Iterator[tuple[bool, str, str]]:
    """Yield (holds, field, what is wrong if not)."""
    yield (
        not sampling.HasField("temperature") or _within(sampling.temperature, 0, MAX_TEMPERATURE),
        "temperature",
        f"is {sampling.temperature:g}; it must be a number from 0 to {MAX_TEMPERATURE:g}",
    )
    yield (
        not sampling.HasField("top_p") or (_within(sampling.top_p, 0, 1) and sampling.top_p > 0),
        "top_p",
        f"is {sampling.top_p:g}; it must be a number above 0, at most 1",
    )
    yield _within(sampling.min_p, 0, 1), "min_p", f"is {sampling.min_p:g}; it must be a number from 0 to 1"
    for field in ("frequency_penalty", "presence_penalty"):
        value = getattr(sampling, field)
        yield (
            _within(value, -MAX_PENALTY, MAX_PENALTY),
            field,
            f"is {value:g}; it must be a number from {-MAX_PENALTY:g} to {MAX_PENALTY:g}",
        )
    # The bound as clients can say it: a 32-bit 0.01 is a little less than 0.01.
    least, value = array("f", [MIN_REPETITION_PENALTY])[0], sampling.repetition_penalty
    yield (
        not sampling.HasField("repetition_penalty") or _within(value, least, MAX_REPETITION_PENALTY),
        "repetition_penalty",
        f"is {value:g}; it must be a number from {MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}; 1 is off",
    )
    yield sampling.n <= MAX_CHOICES, "n", f"is {sampling.n}; the limit is {MAX_CHOICES}"
    yield (
        not sampling.max_tokens or sampling.min_tokens <= sampling.max_tokens,
        "min_tokens",
        f"is {sampling.min_tokens}, above max_tokens {sampling.max_tokens}",
    )
    yield (
        len(sampling.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
        "stop_token_ids",
        f"has {len(sampling.stop_token_ids)} ids; the limit is {MAX_STOP_TOKEN_IDS}",
    )
    yield (
        max(sampling.stop_token_ids, default=0) < vocab_size,
        "stop_token_ids",
        f"holds an id that is not below the vocabulary size {vocab_size}",
    )


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high
