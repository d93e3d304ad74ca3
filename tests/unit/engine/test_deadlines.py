from __future__ import annotations

from octavo_engine.deadlines import Deadlines


def test_the_earliest_deadline_of_a_live_request_is_next():
    deadlines = Deadlines()
    for deadline_ns, key in ((30, 3), (10, 1), (20, 2)):
        deadlines.add(deadline_ns, key, {1, 2, 3}, 3)
    assert deadlines.next_ns({2, 3}) == 20
    assert deadlines.next_ns(set()) is None


def test_deadlines_that_have_come_are_given_once():
    deadlines = Deadlines()
    for deadline_ns, key in ((30, 3), (10, 1), (20, 2)):
        deadlines.add(deadline_ns, key, {1, 2, 3}, 3)
    assert deadlines.pop_due(20) == [1, 2]
    assert deadlines.pop_due(20) == []


def test_deadlines_of_ended_requests_do_not_pile_up():
    deadlines = Deadlines()
    for key in range(10_000):
        deadlines.add(1_000_000 + key, key, {key}, 1)
    assert len(deadlines._heap) < 100
    assert deadlines.next_ns({9_999}) == 1_009_999
