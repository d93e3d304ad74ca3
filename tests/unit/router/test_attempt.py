from __future__ import annotations

import pytest
from octavo.v1 import engine_pb2, types_pb2
from octavo_router.attempt import Attempt
from octavo_router.journal import Ending, Journal, Limits, Timing

LIMITS = Limits(max_tokens=9, min_tokens=0, stop_token_ids=frozenset())


class Tried:
    """An attempt that was admitted at 1000 ns after 50 ns of waiting."""

    def __init__(self, num_choices=1):
        self.journal = Journal([1, 2], num_choices=num_choices, limits=LIMITS)
        self.attempt = Attempt(self.journal, number=0, wake=lambda: None)
        self.attempt.started(engine_pb2.Started(cached_tokens=1, queue_ns=50, at_ns=1000))

    def token(self, position, at_ns, choice=0):
        self.attempt.token(choice, position, 7, -0.5, at_ns)

    def end(self, choice=0, reason=types_pb2.FINISH_REASON_LENGTH, **timing):
        self.attempt.ended(engine_pb2.ChoiceEnd(choice=choice, reason=reason, timing=types_pb2.EngineTiming(**timing)))


def test_timing_is_what_the_engine_says_once_all_has_ended():
    tried = Tried()
    tried.token(0, 1300)
    tried.end(queue_ns=1, prefill_ns=2, decode_ns=3, num_prefill_steps=4)
    assert tried.attempt.timing == Timing(queue_ns=1, prefill_ns=2, decode_ns=3, num_prefill_steps=4)


def test_timing_before_the_engines_end_is_that_of_the_tokens_so_far():
    tried = Tried()
    for position, at_ns in enumerate((1300, 1400, 1600)):
        tried.token(position, at_ns)
    assert tried.attempt.timing == Timing(queue_ns=50, prefill_ns=300, decode_ns=300)


def test_timing_without_tokens_is_the_time_in_the_queue():
    assert Tried().attempt.timing == Timing(queue_ns=50)


def test_counts_of_a_choice_that_ended_are_kept_when_another_ends_here():
    tried = Tried(num_choices=2)
    tried.token(0, 1300, choice=0)
    tried.token(0, 1500, choice=1)
    tried.end(choice=1, queue_ns=50, prefill_ns=300, num_prefill_steps=4)
    tried.journal.choices[0].end(Ending.STOP)
    assert tried.attempt.timing == Timing(queue_ns=50, prefill_ns=300, decode_ns=200, num_prefill_steps=4)


@pytest.mark.parametrize("reason", [types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_CANCELLED])
def test_choice_is_open_until_the_engine_ends_it(reason):
    tried = Tried(num_choices=2)
    tried.end(choice=0, reason=reason)
    assert [tried.attempt.is_choice_open(choice) for choice in range(2)] == [False, True]


def test_choice_of_a_lost_attempt_is_not_open():
    tried = Tried()
    tried.attempt.lose("engine_lost")
    assert not tried.attempt.is_choice_open(0)
