from __future__ import annotations

import pytest
from octavo_router.pace import DrainRate, ServiceTime, Spent


def whole(num_output):
    return Spent(tokens=num_output, num_output=num_output, is_whole=True)


def test_rate_is_that_of_the_time_in_which_somebody_waited():
    rate = DrainRate()
    for start in (0.0, 100.0):
        rate.busy(start)
        for step in range(1, 11):
            rate.took(50, start + step / 10)
        rate.idle(start + 1.0)
    assert rate.tokens_per_s == pytest.approx(500)


def test_rate_of_a_moment_is_unknown():
    rate = DrainRate()
    rate.busy(0.0)
    rate.took(100, 0.1)
    assert rate.tokens_per_s is None


def test_rate_of_a_queue_that_stands_still_falls():
    rate = DrainRate()
    rate.busy(0.0)
    rate.took(1000, 1.0)
    rate.update(10.0)
    assert rate.tokens_per_s < 200


def test_time_is_a_line_over_output_tokens():
    times = ServiceTime()
    for num_output in [10, 20, 40, 80] * 20:
        times.ended(whole(num_output), 1.0 + 0.1 * num_output)
    assert times.seconds_for(10) == pytest.approx(2.0, rel=0.1)
    assert times.seconds_for(80) == pytest.approx(9.0, rel=0.1)
    assert times.deviation_s < 0.5


def test_outputs_of_equal_length_are_taken_as_proportional():
    times = ServiceTime()
    for _ in range(10):
        times.ended(whole(10), 1.0)
    assert times.seconds_for(20) == pytest.approx(2.0)


def test_request_that_was_given_up_tells_of_its_time_and_not_of_its_length():
    times = ServiceTime()
    for _ in range(100):
        times.ended(whole(10), 1.0)
    before = times.mean_output
    for _ in range(20):
        times.ended(Spent(tokens=2, num_output=2), 5.0)
    assert times.mean_output == before
    assert times.seconds_for(10) > 2.0
    times.ended(Spent(), 50.0)
    assert times.seconds_for(10) < 10.0


def test_nothing_is_known_at_first():
    times = ServiceTime()
    assert (times.seconds_for(100), times.deviation_s) == (0.0, 0.0)
