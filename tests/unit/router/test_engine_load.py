from __future__ import annotations

from octavo_router.load import EngineLoad, LoadReport


def test_work_sent_since_the_newest_report_counts():
    load = EngineLoad()
    load.update(LoadReport(waiting_tokens=100, num_running=2, step_id=1), 10.0)
    load.place(40, 10.1)
    assert load.waiting_tokens(10.2) == 140
    assert load.num_running(10.2) == 3


def test_report_takes_over_what_was_sent_before_it():
    load = EngineLoad()
    load.place(40, 10.0)
    load.update(LoadReport(waiting_tokens=35, step_id=1), 10.3)
    assert load.waiting_tokens(10.3) == 35


def test_report_does_not_yet_know_what_was_just_sent():
    load = EngineLoad()
    load.place(40, 10.0)
    load.update(LoadReport(waiting_tokens=0, step_id=1), 10.01)
    assert load.waiting_tokens(10.01) == 40


def test_work_that_no_report_ever_takes_over_is_forgotten():
    load = EngineLoad()
    load.place(40, 10.0)
    assert load.waiting_tokens(16.0) == 0


def test_older_report_is_ignored():
    load = EngineLoad()
    load.update(LoadReport(num_waiting=5, step_id=9), 10.0)
    load.update(LoadReport(num_waiting=1, step_id=8), 11.0)
    assert load.report.num_waiting == 5
