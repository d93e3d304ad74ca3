from __future__ import annotations

import pytest
from octavo.errors import InternalError
from octavo.v1 import engine_pb2
from octavo_router.step_columns import MALFORMED_STEP, tokens_of


def a_step(**columns):
    whole = {"stream_ids": [1, 2], "choices": [0, 1], "positions": [3, 4], "token_ids": [5, 6], "logprobs": [-1, -2]}
    return engine_pb2.StepBatch(step_id=7, **(whole | columns))


def test_columns_become_tokens():
    assert list(tokens_of(a_step())) == [(1, 0, 3, 5, -1.0), (2, 1, 4, 6, -2.0)]


def test_choices_and_logprobs_may_be_left_out():
    assert list(tokens_of(a_step(choices=[], logprobs=[]))) == [(1, 0, 3, 5, 0.0), (2, 0, 4, 6, 0.0)]


def test_step_without_tokens_has_none():
    assert list(tokens_of(engine_pb2.StepBatch(step_id=7))) == []


@pytest.mark.parametrize("column", ["stream_ids", "choices", "positions", "token_ids", "logprobs"])
@pytest.mark.parametrize("length", [1, 3])
def test_column_of_another_length_is_an_error_that_names_the_step(column, length):
    with pytest.raises(InternalError, match="step 7") as refused:
        tokens_of(a_step(**{column: [1] * length}))
    assert refused.value.reason == MALFORMED_STEP
