"""Too few pages: who gives way, and how they come back."""

from __future__ import annotations

from itertools import pairwise

from octavo_engine.sequence import Priority
from support.steered_scheduler import SECOND, Steered, rows


def preempted(outcome):
    return [event.key for event in outcome.preempted]


def test_the_sequence_that_loses_least_gives_way():
    engine = Steered(num_pages=4)
    engine.add(1, 8)
    engine.add(2, 4)
    engine.add(3, 3)
    engine.step()
    plan = engine.plan()  # requests 1 and 2 need pages, none is left: 3 has computed 3 tokens, 2 has 4
    assert rows(plan) == [(1, 8, 1)]
    assert preempted(engine.commit(plan)) == [3, 2]


def test_nobody_is_admitted_in_a_step_that_preempted():
    engine = Steered(num_pages=3)
    engine.add(1, 4)
    engine.add(2, 7, priority=Priority.BATCH)
    engine.step()
    engine.add(3, 1)
    plan = engine.plan()
    assert rows(plan) == [(1, 4, 1)]
    assert preempted(engine.commit(plan)) == [2]
    assert rows(engine.plan()) == [(1, 5, 1), (3, 0, 1)]


def test_nobody_is_admitted_while_one_waits_for_pages_in_flight():
    engine = Steered(num_pages=6)
    engine.add(1, 6)
    engine.add(2, 8, stop_token_ids=frozenset({5}))
    engine.add(3, 1)
    engine.step()  # 2 + 2 + 1 pages
    first = engine.plan()  # request 2 takes the last page
    second = engine.plan()
    engine.commit(first, 9, 5, 9)
    engine.add(4, 1)
    assert engine.pool.num_available == 0
    third = engine.plan()
    assert rows(third) == [(3, 3, 1)]
    engine.commit(second)
    assert rows(engine.plan()) == [(1, 8, 1), (3, 4, 1), (4, 0, 1)]


def test_batch_gives_way_before_interactive():
    engine = Steered(num_pages=5)
    engine.add(1, 8)
    engine.add(2, 7, priority=Priority.BATCH)
    engine.add(3, 2)
    engine.step()
    assert preempted(engine.step()) == [2]


def test_a_shared_prefix_is_not_lost():
    engine = Steered(num_pages=7)
    shared = list(range(8))
    engine.add(1, [*shared, 50], max_tokens=50)
    engine.step()
    engine.add(2, [*shared, 60, 61, 62])  # 11 computed tokens, 8 of them on shared pages
    engine.add(3, 5)  # 5 computed tokens of its own
    engine.step()
    keys = []
    for _ in range(8):
        keys += preempted(engine.step())
    assert keys[0] == 2


def test_nobody_gives_way_twice_in_a_row_while_there_is_another():
    engine = Steered(num_pages=6)
    for key in (1, 2, 3):
        engine.add(key, 4, max_tokens=16)
    victims = []
    while engine.scheduler.num_requests:
        victims += preempted(engine.step())
    assert victims
    assert all(first != second for first, second in pairwise(victims))


def test_the_oldest_is_never_preempted():
    engine = Steered(num_pages=5)
    for key in (1, 2, 3):
        engine.add(key, 4, max_tokens=16)
    ended = []
    while engine.scheduler.num_requests:
        outcome = engine.step()
        assert 1 not in preempted(outcome)
        ended += [end.key for end in outcome.ends]
    assert ended[0] == 1


def test_a_preempted_sequence_comes_back_with_all_its_tokens():
    engine = Steered(num_pages=4)
    engine.add(1, 8, max_tokens=4)
    engine.add(2, 6, max_tokens=9)
    ends_of_2 = []
    positions = []
    while engine.scheduler.num_requests:
        outcome = engine.step()
        positions += [position for key, position in zip(outcome.keys, outcome.positions, strict=True) if key == 2]
        ends_of_2 += [end for end in outcome.ends if end.key == 2]
    assert positions == list(range(9))
    assert ends_of_2[0].num_preemptions == 1
    assert ends_of_2[0].num_recomputed_tokens > 0


def test_a_preempted_sequence_goes_before_those_that_never_ran():
    engine = Steered(num_pages=3)
    engine.add(1, 4, max_tokens=2)
    engine.add(2, 7, max_tokens=6)
    engine.add(3, 1)
    engine.step()
    engine.step()
    assert rows(engine.plan())[0][0] == 2


def test_nobody_gives_way_when_one_is_about_to_end():
    engine = Steered(num_pages=3)
    engine.add(1, 7)
    engine.add(2, 3, max_tokens=2)
    engine.step()
    first = engine.plan()
    assert engine.plan_or_none() is None  # request 1 needs a page; the step in flight ends request 2
    outcome = engine.commit(first)
    assert preempted(outcome) == []
    assert [end.key for end in outcome.ends] == [2]
    assert rows(engine.plan()) == [(1, 8, 1)]


def test_nobody_gives_way_when_pages_come_free_with_the_step_in_flight():
    engine = Steered(num_pages=4)
    engine.add(1, 6)
    engine.add(2, 2, stop_token_ids=frozenset({5}))
    engine.add(3, 1)
    engine.step()
    first, second = engine.plan(), engine.plan()
    engine.commit(first, 9, 5, 9)
    third = engine.plan()  # request 1 needs a page; that of request 2 is still written by the second step
    assert rows(third) == [(3, 3, 1)]
    assert preempted(engine.commit(second)) == []
    assert rows(engine.plan()) == [(1, 8, 1)]  # and request 3, which needs a page too now, gives way


def test_a_paused_sequence_gives_way_when_nothing_else_can_run():
    engine = Steered(num_pages=3)
    engine.add(1, 8)
    engine.scheduler.set_credit(1, 1)
    engine.step()
    engine.add(2, 8)
    plan = engine.plan()
    assert rows(plan) == [(2, 0, 8)]
    assert preempted(engine.commit(plan)) == [1]


def test_a_paused_sequence_keeps_its_pages_while_others_can_run():
    engine = Steered(num_pages=4)
    engine.add(1, 8)
    engine.scheduler.set_credit(1, 1)
    engine.add(2, 1)
    engine.step()
    engine.add(3, 12)
    plan = engine.plan()
    assert rows(plan) == [(2, 1, 1)]
    assert preempted(engine.commit(plan)) == []


def test_a_preempted_and_paused_sequence_waits_for_credit_outside_the_queue():
    engine = Steered(num_pages=3)
    engine.add(1, 8)
    engine.scheduler.set_credit(1, 1)
    engine.step()
    engine.add(2, 8, max_tokens=1)
    engine.step()
    assert engine.plan_or_none() is None
    engine.scheduler.set_credit(1, 2)
    assert rows(engine.plan())[0][0] == 1


def test_batch_older_than_its_allowance_is_protected_like_interactive():
    engine = Steered(num_pages=4, batch_allowance_s=1.0)
    engine.add(1, 5, priority=Priority.BATCH)
    engine.now_ns += 2 * SECOND
    engine.add(2, 7)
    engine.step()
    keys = []
    for _ in range(4):
        keys += preempted(engine.step())
    assert keys == [2]
