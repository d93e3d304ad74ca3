"""Several choices of one request: one prefill, shared pages, one end each."""

from __future__ import annotations

from support.steered_scheduler import Steered, ends, rows


def choices(plan):
    return [(row.sequence.choice, row.start, row.num_tokens) for row in plan.rows]


def test_only_the_first_choice_computes_the_prompt():
    engine = Steered()
    engine.add(1, 6, n=3)
    plan = engine.plan()
    assert choices(plan) == [(0, 0, 6)]
    engine.commit(plan)
    assert choices(engine.plan()) == [(0, 6, 1), (1, 5, 1), (2, 5, 1)]


def test_siblings_share_full_pages_and_copy_the_last():
    engine = Steered()
    engine.add(1, 6, n=2)
    engine.step()
    plan = engine.plan()
    first, second = (row.block_table for row in plan.rows)
    assert first[0] == second[0]
    assert plan.copies == ((first[1], second[1]),)
    assert engine.pool.num_in_use == 3


def test_siblings_copy_a_full_last_page_too():
    engine = Steered()
    engine.add(1, 8, n=2)
    engine.step()
    plan = engine.plan()
    first, second = (row.block_table for row in plan.rows)
    assert first[0] == second[0]
    assert plan.copies == ((first[1], second[1]),)
    assert choices(plan) == [(0, 8, 1), (1, 7, 1)]


def test_siblings_fork_one_step_ahead_of_the_prompts_results():
    engine = Steered()
    engine.add(1, 6, n=2)
    first, second = engine.plan(), engine.plan()
    assert choices(second) == [(0, 6, 1), (1, 5, 1)]
    engine.commit(first)
    assert engine.commit(second).choices == [0, 1]


def test_each_choice_has_its_own_seed_and_end():
    engine = Steered()
    engine.add(1, 6, n=2, stop_token_ids=frozenset({5}), max_tokens=3)
    engine.step(9)
    plan = engine.plan()
    assert [row.sequence.seed for row in plan.rows] == [0, 1]
    outcome = engine.commit(plan, 8, 5)
    assert ends(outcome) == [(1, 1, "STOP")]
    assert not outcome.ends[0].last
    outcome = engine.step(8)
    assert ends(outcome) == [(1, 0, "LENGTH")]
    assert outcome.ends[0].last
    assert engine.pool.num_in_use == 0


def test_a_sibling_waits_for_a_slot_without_holding_pages():
    engine = Steered(max_sequences=1)
    engine.add(1, 6, n=2, max_tokens=2)
    engine.step()
    plan = engine.plan()
    assert choices(plan) == [(0, 6, 1)]
    engine.commit(plan)
    assert engine.pool.num_in_use == 0
    assert choices(engine.plan()) == [(1, 4, 2)]  # the first choice is gone: its full page is a prefix hit


def test_a_sibling_goes_on_alone_if_the_first_choice_stops_at_once():
    engine = Steered()
    engine.add(1, 6, n=2, stop_token_ids=frozenset({5}))
    engine.step(5)
    assert choices(engine.plan()) == [(1, 4, 2)]


def test_a_sibling_with_committed_output_shares_the_prompt():
    engine = Steered()
    engine.add(1, 6, n=2, committed=((), (7, 8)))
    engine.step()
    assert choices(engine.plan()) == [(0, 6, 1), (1, 6, 2)]


def test_finished_choices_generate_nothing():
    engine = Steered()
    engine.add(1, 6, n=2, committed=((7,), ()), finished_choices=frozenset({0}), max_tokens=1)
    outcome = engine.step()
    assert ends(outcome) == [(1, 1, "LENGTH")]
    assert outcome.ends[0].last


def test_cancel_ends_every_choice_and_the_last_end_says_so():
    engine = Steered()
    engine.add(1, 6, n=3)
    engine.step()
    engine.scheduler.cancel(1)
    outcome = engine.scheduler.drain()
    assert ends(outcome) == [(1, 0, "CANCELLED"), (1, 1, "CANCELLED"), (1, 2, "CANCELLED")]
    assert [end.last for end in outcome.ends] == [False, False, True]


def test_a_request_starts_once():
    engine = Steered()
    engine.add(1, 6, n=2)
    started = engine.step().started + engine.step().started
    assert len(started) == 1


def test_siblings_go_before_requests_that_never_ran():
    engine = Steered(max_sequences=2)
    engine.add(1, 6, n=2)
    engine.step()
    engine.add(2, 1)
    assert rows(engine.plan()) == [(1, 6, 1), (1, 5, 1)]


def test_a_sibling_does_not_wait_for_a_first_choice_without_credit():
    engine = Steered()
    engine.add(1, 6, n=2, committed=((7, 8), (7,)))
    engine.scheduler.set_credit(1, 2)
    assert choices(engine.plan()) == [(1, 0, 7)]


def test_a_cancelled_choice_gives_its_pages_back_and_its_siblings_go_on():
    engine = Steered()
    engine.add(1, 6, n=2, max_tokens=3)
    engine.step()
    engine.step()
    engine.scheduler.cancel(1, [1])
    engine.scheduler.check()
    assert engine.pool.num_in_use == 2
    outcome = engine.scheduler.drain()
    assert ends(outcome) == [(1, 1, "CANCELLED")]
    assert not outcome.ends[0].last
    outcome = engine.step()
    assert outcome.choices == [0]
    assert ends(outcome) == [(1, 0, "LENGTH")]
    assert outcome.ends[0].last


def test_a_choice_that_is_cancelled_with_a_step_in_flight_keeps_its_pages_until_that_is_read():
    engine = Steered()
    engine.add(1, 6, n=2)
    engine.step()
    in_flight = engine.plan()
    engine.scheduler.cancel(1, [0])
    engine.scheduler.check()
    assert engine.pool.num_in_use == 3
    outcome = engine.commit(in_flight)
    assert outcome.choices == [1]
    assert engine.pool.num_in_use == 2


def test_siblings_of_a_cancelled_first_choice_compute_the_prompt_themselves():
    engine = Steered(max_step_tokens=4)
    engine.add(1, 6, n=3)
    engine.step()
    engine.scheduler.cancel(1, [0])
    engine.scheduler.check()
    assert [choice for choice, _, _ in choices(engine.plan())] == [1]


def test_choices_that_wait_can_be_cancelled():
    engine = Steered()
    engine.add(1, 6, n=3)
    engine.scheduler.cancel(1, [2, 0, 7])
    assert ends(engine.scheduler.drain()) == [(1, 0, "CANCELLED"), (1, 2, "CANCELLED")]
    assert choices(engine.plan()) == [(1, 0, 6)]
