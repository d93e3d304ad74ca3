from __future__ import annotations

import math

import pytest
from octavo_router.load import RECENT_S, EngineLoad, LoadReport, PlacementNote


@pytest.fixture
def load():
    return EngineLoad()


def note(stream_id, tokens=40, *, router_id="r1", num_sequences=1, output_tokens=0):
    return PlacementNote(
        engine_id="e1",
        router_id=router_id,
        stream_id=stream_id,
        tokens=tokens,
        num_sequences=num_sequences,
        output_tokens=output_tokens,
    )


def test_work_that_the_newest_report_does_not_count_is_added(load):
    load.update(LoadReport(waiting_tokens=100, num_running=2, taken={"r1": 4}))
    load.place(note(5, num_sequences=3), 10.1)
    assert load.waiting_tokens(10.2) == 140
    assert load.num_running(10.2) == 5


def test_requests_that_wait_will_run_with_the_others(load):
    load.update(LoadReport(num_running=2, num_waiting=1))
    assert load.num_running(10.0) == 3


def test_report_takes_over_what_it_counts_and_nothing_else(load):
    for stream_id in (1, 2):
        load.place(note(stream_id), 10.0)
    load.place(note(7, router_id="r2"), 10.0)
    load.update(LoadReport(waiting_tokens=35, num_running=1, step_id=1, taken={"r1": 1, "r2": 7}))
    assert load.waiting_tokens(10.0) == 35 + 40
    assert load.num_running(10.0) == 1 + 1


def test_note_that_comes_after_the_report_that_counts_it_adds_nothing(load):
    load.update(LoadReport(waiting_tokens=35, num_running=1, taken={"r2": 7}))
    load.place(note(7, router_id="r2"), 10.0)
    load.place(note(8, router_id="r2"), 10.0)
    assert load.waiting_tokens(10.0) == 35 + 40


def test_slower_report_of_the_same_step_undoes_nothing(load):
    load.update(LoadReport(waiting_tokens=90, step_id=4))
    load.hint(LoadReport(waiting_tokens=10, step_id=4))
    load.hint(LoadReport(waiting_tokens=10, step_id=3))
    assert load.waiting_tokens(10.1) == 90
    load.hint(LoadReport(waiting_tokens=10, step_id=5))
    assert load.waiting_tokens(10.1) == 10


def test_request_that_came_and_went_between_reports_weighs_nothing(load):
    placement = load.place(note(1), 10.0)
    load.prefilled(placement)
    assert (load.waiting_tokens(10.1), load.num_running(10.1)) == (0, 1)
    load.ended(placement)
    assert (load.waiting_tokens(10.2), load.num_running(10.2)) == (0, 0)


def test_end_that_the_newest_report_does_not_know_is_taken_off(load):
    placement = load.place(note(1), 10.0)
    load.update(LoadReport(waiting_tokens=60, num_running=2, step_id=1, taken={"r1": 1}))
    load.prefilled(placement)
    assert load.waiting_tokens(10.4) == 20
    load.ended(placement)
    load.ended(placement)
    assert load.num_running(10.4) == 1
    load.update(LoadReport(waiting_tokens=20, num_running=1, step_id=2, taken={"r1": 1}))
    assert (load.waiting_tokens(10.8), load.num_running(10.8)) == (20, 1)


def test_a_waiting_request_counts_once_however_many_choices_it_will_have(load):
    placement = load.place(note(1, num_sequences=8), 10.0)
    assert load.num_running(10.1) == 8
    load.update(LoadReport(num_waiting=4, step_id=1, taken={"r1": 1}))
    load.ended(placement)
    assert load.num_running(10.4) == 3


def test_load_is_never_negative(load):
    placement = load.place(note(1), 10.0)
    load.update(LoadReport(step_id=1, taken={"r1": 1}))
    load.ended(placement)
    assert (load.waiting_tokens(10.4), load.num_running(10.4)) == (0, 0)


def test_work_that_no_report_ever_takes_over_is_forgotten(load):
    load.place(note(1), 10.0)
    assert load.waiting_tokens(16.0) == 0


def test_what_was_sent_lately_fades(load):
    assert load.recent(100.0) == (0.0, 0.0)
    load.place(note(1, tokens=40, output_tokens=7), 100.0)
    assert load.recent(100.0) == (40.0, 7.0)
    load.place(note(2, tokens=10, output_tokens=3), 100.0 + RECENT_S)
    tokens, output = load.recent(100.0 + RECENT_S)
    assert (tokens, output) == (pytest.approx(10 + 40 / math.e), pytest.approx(3 + 7 / math.e))
    load.update(LoadReport(taken={"r1": 2}, step_id=1))
    assert load.recent(100.0 + RECENT_S) == (tokens, output), "a report takes nothing away"


def test_older_report_is_ignored(load):
    load.update(LoadReport(num_waiting=5, step_id=9))
    load.update(LoadReport(num_waiting=1, step_id=8))
    assert load.report.num_waiting == 5
