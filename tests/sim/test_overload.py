"""What admission achieves under overload: real queue, gate, routing and scheduler on a virtual clock."""

from __future__ import annotations

from functools import cache
from statistics import median

import pytest
from octavo_router.admission_queue import QueueLimits
from octavo_router.fair_queue import ServiceClass
from sim.overload import Fleetwide, Outcome, Overload, steady, together

SECONDS, WARM_AT = 7.5, 2.5
CAPACITY = 33.0  # requests per second of `steady` that two engines can serve


def run(fleet, asks) -> Outcome:
    return Overload(fleet, asks, seconds=SECONDS, warm_at=WARM_AT).run()


def stream(**asks):
    return steady(seconds=SECONDS, **asks)


@cache
def peak() -> float:
    """Return the best goodput of one router at rates about the capacity."""
    return max(run(Fleetwide(), stream(per_s=rate * CAPACITY)).goodput for rate in (0.9, 1.1, 1.5, 2.0))


@cache
def flooded(num_routers: int, seed: int = 2) -> tuple[Overload, Outcome]:
    """Run ten times the load, nearly all of it of one tenant; the other asks a few times, when `seed` has it."""
    light = stream(per_s=0.15 * CAPACITY, seed=seed, tenant="light")
    asks = together(stream(per_s=10 * CAPACITY, tenant="flood"), light)
    simulation = Overload(Fleetwide(num_routers=num_routers), asks, seconds=SECONDS, warm_at=WARM_AT)
    return simulation, simulation.run()


@pytest.mark.parametrize("num_routers", [1, 2, 4, 8])
def test_goodput_at_ten_times_the_load_is_near_the_peak(num_routers):
    _, outcome = flooded(num_routers)
    assert outcome.goodput >= 0.9 * peak()
    assert outcome.reasons.total() > 8 * CAPACITY * SECONDS, "the others were refused, not left to wait"


def test_without_the_gate_much_of_the_work_is_for_nothing():
    """The comparison that shows that the simulation can tell."""
    outcome = run(Fleetwide(always_open=True), stream(per_s=3 * CAPACITY))
    num_late = sum(each.turn_at is not None and not each.is_good for each in outcome.answers)
    assert outcome.goodput < 0.8 * peak()
    assert num_late > len(outcome.answers) / 3


def test_routers_that_share_engines_share_the_room():
    simulation, _ = flooded(4)
    num_running = [desk.queue.num_running for desk in simulation.desks]
    assert min(num_running) > 0.25 * max(num_running)


@pytest.mark.parametrize("num_routers", [1, 4])
def test_flood_of_one_tenant_hardly_delays_another(num_routers):
    outcomes = [flooded(num_routers, seed)[1] for seed in (2, 3, 4)]
    answers = [each for outcome in outcomes for each in outcome.answers if each.ask.tenant == "light"]
    assert all(each.is_good for each in answers if each.ask.at >= WARM_AT)
    light, flood = ([wait for outcome in outcomes for wait in outcome.waits(tenant)] for tenant in ("light", "flood"))
    # The flood's turn is a quantum, about 0.1 s of the fleet's work; four routers also wait for each other's turns.
    assert max(light) < 0.3 * num_routers
    assert median(light) < 0.5 * median(flood)


def test_tenants_that_all_flood_get_equal_tokens_whatever_the_size_of_their_requests():
    sizes = {"small": (50, 100), "large": (400, 600)}
    used = dict.fromkeys(sizes, 0)
    for draw in (0, 1000):
        asks = together(
            *(
                stream(per_s=2.5 * CAPACITY, seed=draw + sum(prompt), tenant=tenant, prompt=prompt)
                for tenant, prompt in sizes.items()
            )
        )
        for each in run(Fleetwide(), asks).answers:
            if each.turn_at is not None and each.ended_at > WARM_AT:
                used[each.ask.tenant] += each.ask.prompt_len + each.output_tokens
    assert used["small"] == pytest.approx(used["large"], rel=0.15)


def test_people_do_not_notice_a_flood_of_batch_requests_that_takes_the_rest():
    asks = together(
        stream(per_s=0.4 * CAPACITY, tenant="people"),
        stream(per_s=1.5 * CAPACITY, seed=2, tenant="jobs", service_class=ServiceClass.BATCH, patience_s=60.0),
    )
    outcome = run(Fleetwide(), asks)
    assert not [each for each in outcome.answers if each.ask.tenant == "people" and each.reason]
    assert max(outcome.waits("people")) < 0.4
    assert outcome.goodput > 0.9 * peak()
    assert outcome.goodput_of("jobs") > 0.3 * peak()


def test_gate_leaves_no_engine_idle_while_someone_waits():
    asks = stream(per_s=1.5 * CAPACITY, patience_s=1e6)
    limits = QueueLimits(max_queue_s=1e6)
    gated, open_ = (run(Fleetwide(limits=limits, always_open=is_open), asks) for is_open in (False, True))
    assert gated.goodput > 0.95 * open_.goodput
