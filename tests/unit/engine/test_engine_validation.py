from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import pytest
from octavo.errors import InvalidRequest
from octavo.page_hash import salted_root
from octavo.v1 import engine_pb2, types_pb2
from octavo_engine import messages
from octavo_engine.sequence import Priority
from octavo_engine.validation import Validator

FACTS = messages.Ready(
    model_name="m",
    model_revision="r",
    tokenizer_revision="t",
    max_model_len=100,
    vocab_size=50,
    eos_token_ids=[2, 3],
    page_size=4,
    num_pages=20,
    backend="torch",
    device="cpu",
    dtype="float32",
    numerics="exact",
    max_step_tokens=64,
    max_sequences=8,
    load_s=0.0,
)
ARRIVAL_NS = 1_000


@pytest.fixture
def validator() -> Validator:
    return Validator(FACTS)


def a_submit() -> engine_pb2.Submit:
    return engine_pb2.Submit(
        stream_id=1, request_id="r-1", prompt_token_ids=[7, 8, 9], sampling=types_pb2.SamplingParams(seed=5)
    )


def command(validator: Validator, submit: engine_pb2.Submit) -> messages.Submit:
    return validator.command(submit, key=77, arrival_ns=ARRIVAL_NS)


def test_absent_fields_take_their_defaults(validator: Validator) -> None:
    sent = command(validator, a_submit())

    assert sent.key == 77
    assert array("I", sent.prompt).tolist() == [7, 8, 9]
    assert (sent.temperature, sent.top_k, sent.top_p, sent.min_p, sent.seed, sent.n) == (1.0, 0, 1.0, 0.0, 5, 1)
    assert (sent.frequency_penalty, sent.presence_penalty, sent.repetition_penalty) == (0.0, 0.0, 1.0)
    assert sent.priority == Priority.INTERACTIVE
    assert sent.deadline_ns is None
    assert sent.stop_token_ids == [2, 3]
    assert sent.page_hash_root == validator.page_hash_root


def test_a_temperature_of_zero_is_kept(validator: Validator) -> None:
    submit = a_submit()
    submit.sampling.temperature = 0

    assert command(validator, submit).temperature == 0.0


@pytest.mark.parametrize(("asked", "given"), [(0, 77), (5, 5), (77, 77), (1000, 77)])
def test_output_is_limited_to_what_the_pool_leaves(validator: Validator, asked: int, given: int) -> None:
    submit = a_submit()  # the pool holds 20 * 4 tokens, less than the context
    submit.sampling.max_tokens = asked

    assert command(validator, submit).max_tokens == given


def test_stop_tokens_join_the_models_own_unless_those_are_ignored(validator: Validator) -> None:
    submit = a_submit()
    submit.sampling.stop_token_ids.append(9)
    assert command(validator, submit).stop_token_ids == [2, 3, 9]

    submit.sampling.ignore_eos = True
    assert command(validator, submit).stop_token_ids == [9]


def test_a_timeout_becomes_a_deadline_after_the_arrival(validator: Validator) -> None:
    submit = a_submit()
    submit.timeout_ms = 3

    assert command(validator, submit).deadline_ns == ARRIVAL_NS + 3_000_000


def test_a_salt_changes_the_root_of_the_page_hashes(validator: Validator) -> None:
    submit = a_submit()
    submit.cache_salt = b"tenant"

    assert command(validator, submit).page_hash_root == salted_root(validator.page_hash_root, b"tenant")


def test_committed_output_and_ended_choices_go_along(validator: Validator) -> None:
    submit = a_submit()
    submit.sampling.n = 2
    submit.committed.add(token_ids=[4, 5])
    submit.committed.add(token_ids=[6], finished=True)

    sent = command(validator, submit)

    assert [array("I", output).tolist() for output in sent.committed] == [[4, 5], [6]]
    assert sent.finished_choices == [1]


def test_batch_priority_is_kept(validator: Validator) -> None:
    submit = a_submit()
    submit.priority = types_pb2.PRIORITY_BATCH

    assert command(validator, submit).priority == Priority.BATCH


def _committed(*lengths: int, finished: bool = False) -> Callable[[engine_pb2.Submit], object]:
    def change(submit: engine_pb2.Submit) -> None:
        for length in lengths:
            submit.committed.add(token_ids=[4] * length, finished=finished)

    return change


BROKEN: list[tuple[str, str, Callable[[engine_pb2.Submit], object]]] = [
    ("empty_prompt", "prompt_token_ids", lambda s: s.ClearField("prompt_token_ids")),
    ("invalid_token_id", "prompt_token_ids", lambda s: s.prompt_token_ids.append(50)),
    ("prompt_too_long", "prompt_token_ids", lambda s: s.prompt_token_ids.extend([1] * 97)),
    ("prompt_exceeds_pool", "prompt_token_ids", lambda s: s.prompt_token_ids.extend([1] * 77)),
    ("invalid_request_id", "request_id", lambda s: s.ClearField("request_id")),
    ("invalid_request_id", "request_id", lambda s: setattr(s, "request_id", "x" * 129)),
    ("invalid_request_id", "request_id", lambda s: setattr(s, "request_id", "a\nb")),
    ("invalid_cache_salt", "cache_salt", lambda s: setattr(s, "cache_salt", b"x" * 65)),
    ("invalid_priority", "priority", lambda s: setattr(s, "priority", 9)),
    ("invalid_timeout", "timeout_ms", lambda s: setattr(s, "timeout_ms", 2**32 - 1)),
    ("invalid_sampling", "sampling.n", lambda s: setattr(s.sampling, "n", 9)),
    ("invalid_sampling", "sampling.temperature", lambda s: setattr(s.sampling, "temperature", math.nan)),
    ("invalid_sampling", "sampling.temperature", lambda s: setattr(s.sampling, "temperature", math.inf)),
    ("invalid_sampling", "sampling.temperature", lambda s: setattr(s.sampling, "temperature", -0.1)),
    ("invalid_sampling", "sampling.temperature", lambda s: setattr(s.sampling, "temperature", 101)),
    ("invalid_sampling", "sampling.top_p", lambda s: setattr(s.sampling, "top_p", 0)),
    ("invalid_sampling", "sampling.top_p", lambda s: setattr(s.sampling, "top_p", 1.5)),
    ("invalid_sampling", "sampling.min_p", lambda s: setattr(s.sampling, "min_p", math.nan)),
    ("invalid_sampling", "sampling.frequency_penalty", lambda s: setattr(s.sampling, "frequency_penalty", math.nan)),
    ("invalid_sampling", "sampling.presence_penalty", lambda s: setattr(s.sampling, "presence_penalty", 3)),
    ("invalid_sampling", "sampling.repetition_penalty", lambda s: setattr(s.sampling, "repetition_penalty", 0)),
    ("missing_seed", "sampling.seed", lambda s: s.sampling.ClearField("seed")),
    ("invalid_sampling", "sampling.min_tokens", lambda s: s.sampling.MergeFrom(types_pb2.SamplingParams(min_tokens=5, max_tokens=4))),
    ("invalid_sampling", "sampling.stop_token_ids", lambda s: s.sampling.stop_token_ids.extend([1] * 129)),
    ("invalid_sampling", "sampling.stop_token_ids", lambda s: s.sampling.stop_token_ids.append(50)),
    ("invalid_committed", "committed", _committed(1, 1)),
    ("nothing_to_resume", "committed", _committed(1, finished=True)),
    ("committed_too_long", "committed[0].token_ids", _committed(78)),
    ("invalid_token_id", "committed[0].token_ids", lambda s: s.committed.add(token_ids=[50])),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "field", "break_it"), BROKEN)
def test_each_limit_is_refused_by_its_name(
    validator: Validator, reason: str, field: str, break_it: Callable[[engine_pb2.Submit], object]
) -> None:
    submit = a_submit()
    break_it(submit)

    with pytest.raises(InvalidRequest) as refused:
        command(validator, submit)

    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert refused.value.message.startswith(field)


def test_penalties_reach_the_core(validator: Validator) -> None:
    submit = a_submit()
    submit.sampling.MergeFrom(
        types_pb2.SamplingParams(frequency_penalty=-0.5, presence_penalty=2, repetition_penalty=1.25)
    )
    sent = command(validator, submit)

    assert (sent.frequency_penalty, sent.presence_penalty, sent.repetition_penalty) == (-0.5, 2.0, 1.25)


def test_top_k_beyond_the_vocabulary_keeps_all(validator: Validator) -> None:
    submit = a_submit()
    submit.sampling.top_k = 51

    assert command(validator, submit).top_k == 0
