"""An engine's liveness, on a clock of its own."""

from __future__ import annotations

from octavo_router.liveness import SILENT, STALLED, LinkState, LinkTimes, Liveness

TIMES = LinkTimes(suspect_s=1.5, lost_s=2.5, stall_s=30.0)


def test_silence_makes_an_engine_suspect_and_then_ends_its_link() -> None:
    liveness = Liveness(TIMES, 10.0)
    assert [liveness.state(10.0 + silence) for silence in (0.0, 1.5, 1.6)] == [
        LinkState.SERVING,
        LinkState.SERVING,
        LinkState.SUSPECT,
    ]
    assert [liveness.end(10.0 + silence) for silence in (1.6, 2.5, 2.6)] == [None, None, SILENT]


def test_engine_that_is_heard_again_serves_again() -> None:
    liveness = Liveness(TIMES, 0.0)
    assert liveness.state(2.0) is LinkState.SUSPECT
    liveness.heard(2.0)
    assert liveness.state(3.0) is LinkState.SERVING


def test_engine_with_requests_that_makes_no_step_has_stalled_in_the_end() -> None:
    liveness = Liveness(TIMES, 0.0)
    for second in range(1, 31):
        liveness.heard(float(second))
        liveness.beat(7, num_requests=1)
        assert liveness.end(second + 0.1) is None
    liveness.heard(31.5)
    liveness.beat(7, num_requests=1)
    assert liveness.end(31.5) == STALLED


def test_engine_that_steps_has_not_stalled() -> None:
    liveness = Liveness(TIMES, 0.0)
    for second in range(1, 100):
        liveness.heard(float(second))
        liveness.beat(second, num_requests=1)
        assert liveness.end(second + 0.1) is None


def test_engine_without_requests_has_not_stalled() -> None:
    liveness = Liveness(TIMES, 0.0)
    for second in range(1, 100):
        liveness.heard(float(second))
        liveness.beat(7, num_requests=0)
        assert liveness.end(second + 0.1) is None


def test_older_step_is_no_progress() -> None:
    liveness = Liveness(TIMES, 0.0)
    liveness.stepped(9)
    liveness.heard(31.0)
    liveness.stepped(8)
    assert liveness.end(31.0) == STALLED


def test_state_is_what_the_engine_says_of_itself_while_it_is_heard() -> None:
    liveness = Liveness(TIMES, 0.0)
    liveness.loaded(draining=True, stalled=False)
    assert (liveness.state(0.0), liveness.is_draining) == (LinkState.DRAINING, True)
    assert liveness.state(2.0) is LinkState.SUSPECT
    liveness.loaded(draining=True, stalled=True)
    assert liveness.state(0.0) is LinkState.SUSPECT
    liveness.loaded(draining=False, stalled=False)
    assert liveness.state(0.0) is LinkState.SERVING
