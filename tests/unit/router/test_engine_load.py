from __future__ import annotations

import pytest
from octavo_router.load import EngineLoad, LoadReport


@pytest.fixture
def load():
    return EngineLoad()


def test_work_sent_since_the_newest_report_counts(load):
    load.update(LoadReport(waiting_tokens=100, num_running=2, step_id=1), 10.0)
    load.place(40, 10.1, num_sequences=3)
    assert load.waiting_tokens(10.2) == 140
    assert load.num_running(10.2) == 5


def test_report_takes_over_what_was_sent_before_it(load):
    load.place(40, 10.0)
    load.update(LoadReport(waiting_tokens=35, step_id=1), 10.3)
    assert load.waiting_tokens(10.3) == 35
    assert load.num_running(10.3) == 0


def test_report_does_not_yet_know_what_was_just_sent(load):
    load.place(40, 10.0)
    load.update(LoadReport(waiting_tokens=0, step_id=1), 10.01)
    assert load.waiting_tokens(10.01) == 40


def test_slower_report_of_the_same_step_undoes_nothing(load):
    load.update(LoadReport(waiting_tokens=90, step_id=4), 10.0)
    load.hint(LoadReport(waiting_tokens=10, step_id=4), 10.1)
    load.hint(LoadReport(waiting_tokens=10, step_id=3), 10.1)
    assert load.waiting_tokens(10.1) == 90
    load.hint(LoadReport(waiting_tokens=10, step_id=5), 10.1)
    assert load.waiting_tokens(10.1) == 10


def test_request_that_came_and_went_between_reports_weighs_nothing(load):
    placement = load.place(40, 10.0)
    load.prefilled(placement)
    assert (load.waiting_tokens(10.1), load.num_running(10.1)) == (0, 1)
    load.ended(placement)
    assert (load.waiting_tokens(10.2), load.num_running(10.2)) == (0, 0)


def test_end_that_the_newest_report_does_not_know_is_taken_off(load):
    placement = load.place(40, 10.0)
    load.update(LoadReport(waiting_tokens=60, num_running=2, step_id=1), 10.3)
    load.prefilled(placement)
    assert load.waiting_tokens(10.4) == 20
    load.ended(placement)
    load.ended(placement)
    assert load.num_running(10.4) == 1
    load.update(LoadReport(waiting_tokens=20, num_running=1, step_id=2), 10.8)
    assert (load.waiting_tokens(10.8), load.num_running(10.8)) == (20, 1)


def test_load_is_never_negative(load):
    placement = load.place(40, 10.0)
    load.update(LoadReport(step_id=1), 10.3)
    load.ended(placement)
    assert (load.waiting_tokens(10.4), load.num_running(10.4)) == (0, 0)


def test_work_that_no_report_ever_takes_over_is_forgotten(load):
    load.place(40, 10.0)
    assert load.waiting_tokens(16.0) == 0


def test_older_report_is_ignored(load):
    load.update(LoadReport(num_waiting=5, step_id=9), 10.0)
    load.update(LoadReport(num_waiting=1, step_id=8), 11.0)
    assert load.report.num_waiting == 5
