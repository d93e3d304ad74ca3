"""Prefill, decode and the end of a sequence."""

from __future__ import annotations

import pytest
from octavo.errors import InvalidRequest
from support.steered_scheduler import SECOND, Steered, ends, rows


def test_nothing_to_do_gives_no_plan():
    assert Steered().plan_or_none() is None


def test_a_prompt_is_computed_in_one_step_if_it_fits():
    engine = Steered()
    engine.add(1, 6)
    (row,) = engine.plan().rows
    assert (row.start, row.num_tokens, row.samples, row.output_position) == (0, 6, True, 0)
    assert len(row.block_table) == 2


def test_a_long_prompt_is_computed_in_chunks_and_only_the_last_samples():
    engine = Steered(max_step_tokens=4)
    engine.add(1, 10)
    chunks = []
    for _ in range(3):
        plan = engine.plan()
        chunks.append((plan.rows[0].start, plan.rows[0].num_tokens, plan.rows[0].samples))
        engine.commit(plan)
    assert chunks == [(0, 4, False), (4, 4, False), (8, 2, True)]


def test_after_the_prompt_each_step_computes_the_token_sampled_last():
    engine = Steered()
    engine.add(1, 6)
    outcome = engine.step(7)
    assert (outcome.keys, outcome.positions, outcome.token_ids, outcome.logprobs) == ([1], [0], [7], [-1.0])
    plan = engine.plan()
    assert rows(plan) == [(1, 6, 1)]
    assert plan.rows[0].output_position == 1
    assert plan.rows[0].sequence.tokens[6] == 7


def test_decodes_come_before_prefill_chunks_in_a_mixed_step():
    engine = Steered(max_step_tokens=8)
    engine.add(1, 4)
    engine.step()
    engine.add(2, 20)
    assert rows(engine.plan()) == [(1, 4, 1), (2, 0, 7)]


def test_a_new_page_is_taken_when_the_last_one_is_full():
    engine = Steered()
    engine.add(1, 4)
    engine.step()
    assert engine.pool.num_in_use == 1
    plan = engine.plan()
    assert engine.pool.num_in_use == 2
    assert len(plan.rows[0].block_table) == 2


def test_rows_share_one_table_until_a_page_is_added():
    engine = Steered()
    engine.add(1, 4)
    tables = []
    for _ in range(3):
        plan = engine.plan()
        tables.append(plan.rows[0].block_table)
        engine.commit(plan)
    assert tables[1][:1] == tables[0]
    assert tables[2] is tables[1]


def test_a_stop_token_ends_the_sequence_and_is_part_of_the_output():
    engine = Steered()
    engine.add(1, 4, stop_token_ids=frozenset({5}))
    outcome = engine.step(5)
    assert outcome.token_ids == [5]
    (end,) = outcome.ends
    assert ends(outcome) == [(1, 0, "STOP")]
    assert (end.stop_token_id, end.output_tokens, end.last) == (5, 1, True)
    assert engine.pool.num_in_use == 0
    assert engine.scheduler.num_requests == 0


def test_a_stop_token_before_min_tokens_is_banned_and_does_not_end():
    engine = Steered()
    engine.add(1, 4, stop_token_ids=frozenset({5, 3}), min_tokens=2)
    banned = []
    for token in (5, 8):
        plan = engine.plan()
        banned.append(plan.rows[0].banned_token_ids)
        assert engine.commit(plan, token).ends == []
    plan = engine.plan()
    banned.append(plan.rows[0].banned_token_ids)
    assert banned == [(3, 5), (3, 5), ()]
    assert ends(engine.commit(plan, 5)) == [(1, 0, "STOP")]


def test_max_tokens_ends_the_sequence_with_length():
    engine = Steered()
    engine.add(1, 4, max_tokens=2)
    assert engine.step().ends == []
    assert ends(engine.step()) == [(1, 0, "LENGTH")]
    assert engine.plan_or_none() is None


def test_the_context_length_ends_the_sequence_with_length():
    engine = Steered(max_model_len=6)
    engine.add(1, 4)
    engine.step()
    assert ends(engine.step()) == [(1, 0, "LENGTH")]


def test_the_pool_is_a_context_length_too():
    engine = Steered(num_pages=2)
    engine.add(1, 6)
    engine.step()
    assert ends(engine.step()) == [(1, 0, "LENGTH")]


def test_a_prompt_that_can_never_fit_is_refused():
    engine = Steered(num_pages=2)
    with pytest.raises(InvalidRequest, match="8 tokens") as refusal:
        engine.add(1, 8)
    assert refusal.value.reason == "prompt_exceeds_pool"
    assert engine.scheduler.num_requests == 0


def test_a_cancelled_request_frees_its_pages_at_once():
    engine = Steered()
    engine.add(1, 6)
    engine.step()
    engine.scheduler.cancel(1)
    engine.scheduler.check()
    assert engine.pool.num_in_use == 0
    assert ends(engine.scheduler.drain()) == [(1, 0, "CANCELLED")]


def test_a_waiting_request_can_be_cancelled():
    engine = Steered(max_sequences=1)
    engine.add(1, 4)
    engine.step()
    engine.add(2, 4)
    engine.scheduler.cancel(2)
    assert ends(engine.scheduler.drain()) == [(2, 0, "CANCELLED")]
    assert engine.scheduler.load().num_waiting == 0


def test_cancelling_an_unknown_request_is_ignored():
    engine = Steered()
    engine.scheduler.cancel(77)
    assert engine.scheduler.drain().is_empty


def test_a_request_past_its_deadline_never_runs():
    engine = Steered()
    engine.add(1, 4, timeout_ns=SECOND)
    assert engine.scheduler.next_deadline_ns == engine.now_ns + SECOND
    engine.now_ns += SECOND
    assert engine.plan_or_none() is None
    assert ends(engine.scheduler.drain()) == [(1, 0, "DEADLINE")]
    assert engine.scheduler.next_deadline_ns is None


def test_a_running_request_ends_at_its_deadline():
    engine = Steered()
    engine.add(1, 4, timeout_ns=SECOND)
    engine.step()
    engine.now_ns += SECOND
    assert engine.plan_or_none() is None
    (end,) = engine.scheduler.drain().ends
    assert end.output_tokens == 1
    assert engine.pool.num_in_use == 0


def test_hand_off_ends_everything():
    engine = Steered(max_sequences=1)
    engine.add(1, 4, n=2)
    engine.add(2, 4)
    engine.step()
    engine.scheduler.hand_off()
    assert ends(engine.scheduler.drain()) == [(1, 0, "HANDOFF"), (1, 1, "HANDOFF"), (2, 0, "HANDOFF")]
    assert engine.scheduler.num_requests == 0


def test_a_sequence_pauses_at_its_credit_and_goes_on_with_more():
    engine = Steered()
    engine.add(1, 4)
    engine.scheduler.set_credit(1, 1)
    engine.step()
    assert engine.plan_or_none() is None
    assert engine.pool.num_in_use == 1
    engine.scheduler.set_credit(1, 2)
    assert rows(engine.plan()) == [(1, 4, 1)]


def test_a_request_without_credit_is_not_admitted():
    engine = Steered()
    engine.add(1, 4)
    engine.scheduler.set_credit(1, 0)
    assert engine.plan_or_none() is None
    engine.scheduler.set_credit(1, 5)
    assert engine.plan().num_tokens == 4


def test_committed_output_is_computed_again_and_counts():
    engine = Steered()
    engine.add(1, 4, committed=((7, 8),), max_tokens=3)
    plan = engine.plan()
    assert rows(plan) == [(1, 0, 6)]
    assert plan.rows[0].output_position == 2
    outcome = engine.commit(plan, 5)
    assert outcome.positions == [2]
    (end,) = outcome.ends
    assert end.output_tokens == 3


def test_a_request_whose_committed_output_is_complete_ends_at_once():
    engine = Steered()
    engine.add(1, 4, committed=((7, 8),), max_tokens=2)
    assert ends(engine.scheduler.drain()) == [(1, 0, "LENGTH")]
    assert engine.plan_or_none() is None


def test_a_request_without_open_choices_is_refused():
    engine = Steered()
    with pytest.raises(InvalidRequest) as refusal:
        engine.add(1, 4, committed=((7, 8),), finished_choices=frozenset({0}))
    assert refusal.value.reason == "nothing_to_generate"


def test_a_step_that_fails_ends_its_requests_with_error():
    engine = Steered(max_sequences=1)
    engine.add(1, 4)
    engine.add(2, 4)
    plan = engine.plan()
    outcome = engine.scheduler.fail(plan, "step_failed")
    engine.scheduler.check()
    assert ends(outcome) == [(1, 0, "ERROR")]
    assert outcome.ends[0].error == "step_failed"
    assert rows(engine.plan()) == [(2, 0, 4)]


def test_pages_of_a_step_that_failed_are_not_published():
    engine = Steered()
    engine.add(1, 8)
    engine.scheduler.fail(engine.plan(), "step_failed")
    assert engine.pool.num_free == 16


def test_the_outcome_tells_when_a_request_started_and_what_was_computed():
    engine = Steered(max_step_tokens=4)
    engine.add(1, 6)
    plan = engine.plan()
    started_ns = engine.now_ns
    outcome = engine.commit(plan)
    assert [(event.key, event.cached_tokens, event.at_ns) for event in outcome.started] == [(1, 0, started_ns)]
    assert [(event.key, event.start, event.num_tokens) for event in outcome.chunks] == [(1, 0, 4)]
    outcome = engine.step()
    assert outcome.started == []
    assert [(event.start, event.num_tokens) for event in outcome.chunks] == [(4, 2)]


def test_the_end_tells_counts_and_times():
    engine = Steered(max_step_tokens=4)
    engine.add(1, 6, max_tokens=4)
    engine.step()
    planned_ns = engine.now_ns - 1_000_000
    engine.step()
    first_ns = engine.now_ns
    engine.step()
    engine.step()
    (end,) = engine.step().ends
    assert (end.first_planned_ns, end.first_token_ns, end.last_token_ns) == (planned_ns, first_ns, engine.now_ns)
    assert (end.num_prefill_steps, end.peak_pages, end.output_tokens) == (2, 3, 4)


def test_load_counts_waiting_requests_and_prefill_tokens():
    engine = Steered(max_sequences=1, max_step_tokens=4)
    engine.add(1, 10)
    engine.add(2, 5)
    assert (engine.scheduler.load().num_waiting, engine.scheduler.load().waiting_tokens) == (2, 15)
    engine.step()
    load = engine.scheduler.load()
    assert (load.num_waiting, load.waiting_tokens, load.num_running) == (1, 11, 1)
    assert (load.pages_in_use, load.pages_cached, load.pages_free) == (3, 0, 13)
