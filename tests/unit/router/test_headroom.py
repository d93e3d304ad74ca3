from __future__ import annotations

import pytest
from octavo_router.headroom import EngineRoom

BUSY = {
    "waiting_tokens": 100,
    "prefill_tokens_per_s": 1000.0,
    "max_step_tokens": 128,
    "num_requests": 20,
    "max_sequences": 64,
    "pages_in_use": 500,
    "num_pages": 1000,
    "page_size": 16,
}
ASKS = {"num_sequences": 1, "num_tokens": 160, "queue_s": 0.2, "share": 1.0}


def has_room(load=(), **asks):
    return EngineRoom(**BUSY | dict(load)).has_room(**ASKS | asks)


def test_busy_engine_with_little_before_it_has_room():
    assert has_room()


@pytest.mark.parametrize("load", [{"waiting_tokens": 200}, {"num_requests": 72}, {"pages_in_use": 941}])
def test_engine_is_full_by_work_by_slots_or_by_pages(load):
    assert not has_room(load)


def test_next_step_finds_all_that_it_can_take():
    assert has_room({"waiting_tokens": 400, "max_step_tokens": 512})
    assert not has_room({"waiting_tokens": 512, "max_step_tokens": 512})


def test_a_few_requests_wait_for_the_next_slot():
    assert has_room({"num_requests": 71})
    assert not has_room({"num_requests": 71}, num_sequences=2)


def test_idle_engine_takes_what_fits_nowhere():
    assert has_room({"num_requests": 0, "waiting_tokens": 9000, "pages_in_use": 999}, num_tokens=80_000)


def test_engine_that_does_not_tell_its_slots_is_judged_by_its_work():
    assert has_room({"max_sequences": 0, "num_requests": 5000})


@pytest.mark.parametrize("load", [{"waiting_tokens": 250}, {"num_requests": 75}, {"pages_in_use": 955}])
def test_router_with_the_smallest_share_goes_first(load):
    assert has_room(load, share=0.2)
    assert not has_room(load, share=0.8)
