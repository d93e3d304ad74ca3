from __future__ import annotations

import pytest
from octavo.errors import Cancelled, InternalError, InvalidRequest, OctavoError, Overloaded, Unavailable
from octavo_client.persistence import RESUME_WAIT_S, Persistence

LOSS = Unavailable("unavailable", "Socket closed")
STOPPED = Cancelled("cancelled", "RST_STREAM")
DRAINING = Unavailable("draining", "this router is draining")
NO_ENGINE = Unavailable("no_engine", "no engine")
FULL = Overloaded("too_many_requests", "try again")
WRONG = InvalidRequest("invalid_sampling", "no")


def fresh(persistence: Persistence, failure: OctavoError) -> float | None:
    return persistence.pause_after(failure, was_accepted=False, is_fresh=True, now=0.0)


def lost(persistence: Persistence, failure: OctavoError = LOSS, now: float = 0.0) -> float | None:
    return persistence.pause_after(failure, was_accepted=True, is_fresh=False, now=now)


def searching(persistence: Persistence, failure: OctavoError = LOSS, now: float = 0.0) -> float | None:
    return persistence.pause_after(failure, was_accepted=False, is_fresh=False, now=now)


@pytest.mark.parametrize("failure", [LOSS, STOPPED])
def test_stream_whose_router_is_gone_goes_on_at_once(failure: OctavoError) -> None:
    assert lost(Persistence(num_routers=1, max_resumes=4), failure) == 0.0


@pytest.mark.parametrize("failure", [DRAINING, NO_ENGINE, FULL, WRONG, InternalError("internal", "bug")])
def test_what_a_live_router_says_in_mid_stream_is_final(failure: OctavoError) -> None:
    assert lost(Persistence(num_routers=2, max_resumes=4), failure) is None


def test_fresh_request_asks_each_router_once() -> None:
    persistence = Persistence(num_routers=3, max_resumes=4)
    assert [fresh(persistence, LOSS) for _ in range(3)] == [0.0, 0.0, None]


def test_fresh_request_asks_a_lone_address_twice_for_it_may_be_several_processes() -> None:
    persistence = Persistence(num_routers=1, max_resumes=4)
    assert [fresh(persistence, LOSS) for _ in range(2)] == [0.0, None]


@pytest.mark.parametrize("failure", [DRAINING, NO_ENGINE])
def test_fresh_request_leaves_a_router_that_cannot_serve_for_another(failure: OctavoError) -> None:
    assert fresh(Persistence(num_routers=2, max_resumes=4), failure) == 0.0
    assert fresh(Persistence(num_routers=1, max_resumes=4), failure) is None


@pytest.mark.parametrize("failure", [FULL, WRONG])
def test_refusal_of_a_fresh_request_is_final(failure: OctavoError) -> None:
    assert fresh(Persistence(num_routers=2, max_resumes=4), failure) is None


@pytest.mark.parametrize("failure", [LOSS, DRAINING, NO_ENGINE, FULL])
def test_search_for_a_router_waits_longer_and_longer_until_its_time_is_over(failure: OctavoError) -> None:
    persistence = Persistence(num_routers=2, max_resumes=4)
    lost(persistence)
    assert [searching(persistence, failure, 1.0) for _ in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.5]
    assert searching(persistence, failure, RESUME_WAIT_S) is None


def test_search_ends_when_a_router_refuses_for_good() -> None:
    persistence = Persistence(num_routers=2, max_resumes=4)
    lost(persistence)
    assert searching(persistence, WRONG) is None


def test_generation_resumes_so_many_times_and_no_more() -> None:
    persistence = Persistence(num_routers=2, max_resumes=2)
    for _ in range(2):
        assert lost(persistence) == 0.0
        persistence.accepted()
    assert lost(persistence) is None
    assert persistence.num_resumes == 2


def test_no_failure_is_survived_without_resumes() -> None:
    persistence = Persistence(num_routers=2, max_resumes=0)
    assert (fresh(persistence, LOSS), lost(persistence)) == (None, None)
