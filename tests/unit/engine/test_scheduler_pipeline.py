"""Planning one step ahead: results of step n are read after step n + 1 was planned."""

from __future__ import annotations

import pytest
from support.steered_scheduler import Steered, ends, rows


def test_the_next_step_is_planned_before_the_token_is_known():
    engine = Steered()
    engine.add(1, 4)
    first, second = engine.plan(), engine.plan()
    assert rows(second) == [(1, 4, 1)]
    assert second.rows[0].start == len(second.rows[0].sequence.tokens)
    assert second.rows[0].output_position == 1
    assert engine.commit(first, 7).positions == [0]
    assert engine.commit(second, 8).positions == [1]


def test_nothing_is_planned_beyond_max_tokens():
    engine = Steered()
    engine.add(1, 4, max_tokens=2)
    first, second = engine.plan(), engine.plan()
    assert engine.plan_or_none() is None
    engine.commit(first)
    assert ends(engine.commit(second)) == [(1, 0, "LENGTH")]


def test_nothing_is_planned_beyond_the_credit():
    engine = Steered()
    engine.add(1, 4)
    engine.scheduler.set_credit(1, 1)
    first = engine.plan()
    assert engine.plan_or_none() is None
    engine.commit(first)


def test_what_was_planned_after_a_stop_token_is_dropped():
    engine = Steered()
    engine.add(1, 4, stop_token_ids=frozenset({5}))
    first, second = engine.plan(), engine.plan()
    assert ends(engine.commit(first, 5)) == [(1, 0, "STOP")]
    outcome = engine.commit(second, 8)
    assert outcome.token_ids == []
    assert outcome.ends == []


def test_pages_and_slot_of_an_ended_sequence_stay_until_no_planned_step_writes_them():
    engine = Steered(max_sequences=1)
    engine.add(1, 4, stop_token_ids=frozenset({5}))
    first, second = engine.plan(), engine.plan()
    engine.commit(first, 5)
    engine.add(2, 4)
    assert engine.pool.num_in_use == 2
    assert engine.plan_or_none() is None
    engine.commit(second, 8)
    assert engine.pool.num_in_use == 0
    assert rows(engine.plan()) == [(2, 0, 4)]


def test_a_cancelled_request_frees_its_pages_with_the_step_in_flight():
    engine = Steered()
    engine.add(1, 4)
    first = engine.plan()
    engine.scheduler.cancel(1)
    assert engine.pool.num_in_use == 1
    assert engine.commit(first, 5).token_ids == []
    assert engine.pool.num_in_use == 0


def test_a_page_is_published_when_its_step_was_read_and_not_before():
    engine = Steered()
    engine.add(1, [1, 2, 3, 4, 5])
    first = engine.plan()
    assert engine.pool.num_resident == 0
    outcome = engine.commit(first)
    assert engine.pool.num_resident == 1
    assert len(outcome.pages_stored) == 1


def test_a_preempted_sequence_keeps_the_token_that_was_in_flight():
    engine = Steered(num_pages=4)
    engine.add(1, 7)
    engine.add(2, 4)
    engine.step()
    first = engine.plan()  # takes the last page, for request 2
    assert rows(first) == [(1, 7, 1), (2, 4, 1)]
    assert engine.plan_or_none() is None  # request 1 needs a page of request 2, which the first step still writes
    assert engine.pool.num_available == 0
    outcome = engine.commit(first)
    assert [event.key for event in outcome.preempted] == [2]
    assert (outcome.keys, outcome.positions) == ([1, 2], [1, 1])
    assert rows(engine.plan()) == [(1, 8, 1)]


def test_a_preempted_sequence_is_not_admitted_before_its_token_is_known():
    engine = Steered(num_pages=6)
    engine.add(1, 7)
    engine.add(2, 4)
    engine.add(3, 7)
    engine.scheduler.set_credit(3, 1)
    engine.step()
    first = engine.plan()
    assert engine.plan_or_none() is None  # request 2 gives way to request 1
    engine.scheduler.cancel(1)
    engine.scheduler.cancel(3)
    assert engine.pool.num_available == 2
    assert engine.plan_or_none() is None
    engine.commit(first)
    assert rows(engine.plan()) == [(2, 4, 2)]


def test_a_step_is_committed_in_the_order_of_the_plans():
    engine = Steered()
    engine.add(1, 4)
    engine.plan()
    with pytest.raises(AssertionError, match="step 2 is committed before 1"):
        engine.commit(engine.plan())


def test_generations_tell_occupants_of_a_slot_apart():
    engine = Steered(max_sequences=1)
    seen = []
    for key in (1, 2, 3):
        engine.add(key, 4, max_tokens=1)
        plan = engine.plan()
        seen.append((plan.rows[0].slot, plan.rows[0].generation))
        engine.commit(plan)
    assert [slot for slot, _ in seen] == [0, 0, 0]
    assert len(set(seen)) == 3
    assert seen == sorted(seen)
