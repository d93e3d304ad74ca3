"""Who runs next: prefix hits, order, classes, watermark, prefixes in progress."""

from __future__ import annotations

from octavo_engine.sequence import Priority
from support.steered_scheduler import SECOND, Steered, rows


def test_a_prompt_seen_before_is_computed_from_its_first_new_page():
    engine = Steered()
    engine.add(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=1)
    engine.step()
    engine.add(2, [1, 2, 3, 4, 5, 6, 7, 8, 10])
    plan = engine.plan()
    assert rows(plan) == [(2, 8, 1)]
    outcome = engine.commit(plan)
    assert outcome.started[0].cached_tokens == 8


def test_the_last_token_is_computed_even_if_its_page_is_resident():
    engine = Steered()
    for key in (1, 2):
        engine.add(key, [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1)
        plan = engine.plan()
        engine.commit(plan)
    assert rows(plan) == [(2, 4, 4)]


def test_output_is_reusable_too():
    engine = Steered()
    engine.add(1, [1, 2, 3], max_tokens=6)
    for token in (4, 5, 6, 7, 8, 9):
        engine.step(token)
    engine.add(2, [1, 2, 3, 4, 5, 6, 7, 8, 20])
    assert rows(engine.plan()) == [(2, 8, 1)]


def test_without_prefix_caching_nothing_is_reused():
    engine = Steered(prefix_caching=False)
    for key in (1, 2):
        engine.add(key, [1, 2, 3, 4, 5], max_tokens=1)
        plan = engine.plan()
        engine.commit(plan)
    assert rows(plan) == [(2, 0, 5)]
    assert engine.pool.num_free == 16


def test_flushed_prefixes_are_computed_again():
    engine = Steered()
    engine.add(1, [1, 2, 3, 4, 5], max_tokens=1)
    engine.step()
    assert engine.scheduler.flush() == 1
    engine.add(2, [1, 2, 3, 4, 5])
    assert rows(engine.plan()) == [(2, 0, 5)]


def test_a_request_waits_until_its_whole_prompt_fits():
    engine = Steered(num_pages=4, max_step_tokens=8)
    engine.add(1, 9)
    engine.step()
    engine.add(2, 8)
    assert rows(engine.plan()) == [(1, 8, 1)]
    assert engine.scheduler.load().num_waiting == 1


def test_a_request_that_does_not_fit_is_not_overtaken():
    engine = Steered(num_pages=4)
    engine.add(1, 9)
    engine.step()
    engine.add(2, 8)
    engine.now_ns += SECOND
    engine.add(3, 1)
    assert rows(engine.plan()) == [(1, 9, 1)]


def test_admission_leaves_the_watermark_to_those_who_run():
    engine = Steered(num_pages=10, watermark=0.2)
    engine.add(1, 4)
    engine.step()
    engine.add(2, 32)
    assert rows(engine.plan()) == [(1, 4, 1)]


def test_the_watermark_does_not_bind_when_nothing_runs():
    engine = Steered(num_pages=10, watermark=0.2)
    engine.add(1, 39)
    assert rows(engine.plan()) == [(1, 0, 39)]


def test_no_more_sequences_run_than_there_are_slots():
    engine = Steered(max_sequences=2)
    for key in (1, 2, 3):
        engine.add(key, 4)
    assert rows(engine.plan()) == [(1, 0, 4), (2, 0, 4)]


def test_slots_leave_room_for_prefill_beside_all_decodes():
    engine = Steered(max_sequences=8, max_step_tokens=4)
    for key in range(1, 6):
        engine.add(key, 1)
    for _ in range(4):
        plan = engine.plan()
        engine.commit(plan)
    assert len(plan.rows) == 3


def test_a_short_prompt_overtakes_a_long_one_that_came_just_before():
    engine = Steered(max_step_tokens=8)
    engine.add(1, 40)
    engine.add(2, 4)
    assert rows(engine.plan()) == [(2, 0, 4), (1, 0, 4)]


def test_a_short_prompt_overtakes_a_long_one_in_mid_prefill():
    engine = Steered(max_step_tokens=8, num_pages=400)
    engine.add(1, 400)
    engine.step()
    engine.add(2, 4)
    assert rows(engine.plan()) == [(2, 0, 4), (1, 8, 4)]


def test_a_long_prompt_that_has_waited_its_own_time_is_not_overtaken():
    engine = Steered(max_step_tokens=8, num_pages=400)
    engine.add(1, 400)
    engine.now_ns += SECOND
    engine.add(2, 4)
    assert rows(engine.plan()) == [(1, 0, 8)]


def test_interactive_goes_before_batch():
    engine = Steered(max_sequences=1)
    engine.add(1, 4, priority=Priority.BATCH)
    engine.add(2, 4)
    assert rows(engine.plan()) == [(2, 0, 4)]


def test_batch_that_has_waited_its_allowance_goes_before_newer_interactive():
    engine = Steered(max_sequences=1, batch_allowance_s=1.0)
    engine.add(1, 4, priority=Priority.BATCH)
    engine.now_ns += 2 * SECOND
    engine.add(2, 4)
    assert rows(engine.plan()) == [(1, 0, 4)]


def test_a_prefix_that_another_is_computing_is_waited_for():
    engine = Steered()
    prefix = list(range(12))
    engine.add(1, [*prefix, 100])
    engine.add(2, [*prefix, 200])
    plan = engine.plan()
    assert rows(plan) == [(1, 0, 13)]
    assert engine.scheduler.load().waiting_tokens == 1
    assert engine.scheduler.load().num_waiting == 1
    engine.commit(plan)
    assert rows(engine.plan()) == [(1, 13, 1), (2, 12, 1)]


def test_a_small_common_prefix_is_not_waited_for():
    engine = Steered()
    engine.add(1, [1, 2, 3, 4, *range(100, 112)])
    engine.add(2, [1, 2, 3, 4, *range(200, 212)])
    assert rows(engine.plan()) == [(1, 0, 16), (2, 0, 16)]


def test_a_prefix_is_not_waited_for_when_its_computer_gives_up():
    engine = Steered(max_step_tokens=4)
    prefix = list(range(12))
    engine.add(1, [*prefix, 100])
    engine.add(2, [*prefix, 200])
    engine.step()
    engine.scheduler.cancel(1)
    assert rows(engine.plan()) == [(2, 4, 4)]


def test_a_prefix_is_not_waited_for_when_its_computer_is_paused():
    engine = Steered(max_step_tokens=4)
    prefix = list(range(12))
    engine.add(1, [*prefix, 100])
    engine.add(2, [*prefix, 200])
    engine.step()
    engine.scheduler.set_credit(1, 0)
    assert rows(engine.plan()) == [(2, 4, 4)]


def test_a_request_that_waits_for_a_prefix_can_be_cancelled():
    engine = Steered(max_step_tokens=4)
    prefix = list(range(12))
    engine.add(1, [*prefix, 100])
    engine.add(2, [*prefix, 200])
    engine.step()
    engine.scheduler.cancel(2)
    engine.scheduler.check()
    assert engine.scheduler.load().waiting_tokens == 9


def test_cached_tokens_of_a_resumed_request_do_not_count_its_output():
    engine = Steered()
    prompt = list(range(6))
    engine.add(1, prompt, max_tokens=8)
    while engine.scheduler.num_requests:
        engine.step()
    engine.add(2, prompt, committed=((9,) * 7,))
    (started,) = engine.step().started
    assert started.cached_tokens == 6
