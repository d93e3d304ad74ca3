from __future__ import annotations

import math
from typing import Any

import pytest
from octavo.errors import InvalidRequest
from octavo.sampling_rules import (
    INVALID_SAMPLING,
    MAX_CHOICES,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    check_sampling,
)
from octavo.v1 import types_pb2

ALLOWED: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": MAX_TEMPERATURE},
    {"top_p": 1},
    {"min_p": 1},
    {"top_k": 2**32 - 1},
    {"n": MAX_CHOICES},
    {"min_tokens": 5},
    {"min_tokens": 5, "max_tokens": 5},
    {"stop_token_ids": [49] * MAX_STOP_TOKEN_IDS},
    {"frequency_penalty": MAX_PENALTY, "presence_penalty": -MAX_PENALTY},
    {"frequency_penalty": -MAX_PENALTY, "presence_penalty": MAX_PENALTY},
    {"repetition_penalty": MIN_REPETITION_PENALTY},
    {"repetition_penalty": MAX_REPETITION_PENALTY},
]
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": math.nan}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": MAX_TEMPERATURE + 1}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.5}),
    ("min_p", {"min_p": math.inf}),
    ("n", {"n": MAX_CHOICES + 1}),
    ("frequency_penalty", {"frequency_penalty": 2.01}),
    ("frequency_penalty", {"frequency_penalty": math.nan}),
    ("presence_penalty", {"presence_penalty": -2.01}),
    ("presence_penalty", {"presence_penalty": -math.inf}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("repetition_penalty", {"repetition_penalty": -1}),
    ("repetition_penalty", {"repetition_penalty": math.inf}),
    ("repetition_penalty", {"repetition_penalty": MAX_REPETITION_PENALTY + 1}),
    ("min_tokens", {"min_tokens": 5, "max_tokens": 4}),
    ("stop_token_ids", {"stop_token_ids": [1] * (MAX_STOP_TOKEN_IDS + 1)}),
    ("stop_token_ids", {"stop_token_ids": [1, 50]}),
]


@pytest.mark.parametrize("asked", ALLOWED)
def test_limits_themselves_are_allowed(asked: dict[str, Any]) -> None:
    check_sampling(types_pb2.SamplingParams(**asked), vocab_size=50)


@pytest.mark.parametrize(("field", "asked"), REFUSED)
def test_beyond_a_limit_the_field_is_named(field: str, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(types_pb2.SamplingParams(**asked), vocab_size=50)
    assert (refused.value.reason, refused.value.field) == (INVALID_SAMPLING, f"sampling.{field}")
    assert refused.value.message.startswith(f"sampling.{field} ")
