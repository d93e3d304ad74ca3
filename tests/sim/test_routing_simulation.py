"""What the cost policy, the directory and placement notes achieve together: real code of both sides on a virtual clock."""

from __future__ import annotations

from collections import Counter
from functools import cache
from statistics import fmean, pstdev

import pytest
from sim.rivals import consistent_hash, power_of_two, round_robin
from sim.simulation import OMNISCIENT, Delays, Setup, Simulation
from sim.workloads import Workload, hot_prefix, no_sharing, shared_prefix, suite

NUM_JOBS = 600
SETUPS = {
    "omniscient": lambda: Setup(delays=OMNISCIENT),
    "one router": lambda: Setup(num_routers=1),
    "eight routers": lambda: Setup(num_routers=8),
    "prompt load reports": lambda: Setup(num_routers=8, delays=Delays(heartbeat_s=0.1), counts_uncached=True),
    "without notes": lambda: Setup(num_routers=8, keeps_notes=False),
    "round robin": lambda: Setup(num_routers=8, choose=round_robin()),
    "power of two": lambda: Setup(num_routers=8, choose=power_of_two(seed=1)),
    "consistent hash": lambda: Setup(num_routers=8, choose=consistent_hash()),
}


@cache
def result(setup: str, workload: str, num_jobs: int = NUM_JOBS):
    """Run once what several tests look at."""
    return Simulation(SETUPS[setup](), suite(num_jobs)[workload]).run()


def test_same_seed_gives_the_same_run():
    workload = shared_prefix(num_jobs=60, per_s=80)
    first, second = (Simulation(Setup(num_routers=2, num_engines=2), workload).run() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "workload", ["shared prefix", "prefix repetition", "multi-turn", "conversations", "sibling bursts", "hot prefix"]
)
def test_eight_routers_hit_as_often_as_one(workload):
    one, eight = result("one router", workload), result("eight routers", workload)
    assert eight.hit_rate > one.hit_rate - 0.02


@pytest.mark.parametrize("workload", ["shared prefix", "prefix repetition"])
def test_eight_routers_with_prompt_load_reports_hit_as_often_as_an_omniscient_one(workload):
    assert result("prompt load reports", workload).hit_rate > result("omniscient", workload).hit_rate - 0.02


def test_load_is_even():
    assert result("eight routers", "shared prefix").load_cov < 0.06
    assert result("eight routers", "no sharing").load_cov < 0.06


@pytest.mark.parametrize("rival", ["power of two", "consistent hash"])
def test_shared_prefixes_are_served_sooner_than_by_rivals(rival):
    ours, theirs = result("eight routers", "shared prefix"), result(rival, "shared prefix")
    assert ours.hit_rate > theirs.hit_rate + 0.05
    assert ours.ttft_mean_s < theirs.ttft_mean_s


def test_prompts_that_share_nothing_fare_no_worse_than_with_power_of_two():
    ours, theirs = result("eight routers", "no sharing"), result("power of two", "no sharing")
    assert ours.hit_rate == theirs.hit_rate == 0.0
    assert ours.ttft_mean_s <= theirs.ttft_mean_s
    assert ours.ttft_p99_s <= theirs.ttft_p99_s
    assert ours.e2e_mean_s <= 1.01 * theirs.e2e_mean_s


def test_without_placement_notes_requests_still_find_their_prefixes():
    alone = result("without notes", "shared prefix")
    assert alone.hit_rate > result("consistent hash", "shared prefix").hit_rate
    assert alone.hit_rate < result("eight routers", "shared prefix").hit_rate, "then notes are of no use"


def test_hot_prefix_replicates_and_cold_prefixes_stay_together():
    run = Simulation(Setup(num_routers=4), hot_prefix(num_jobs=NUM_JOBS, per_s=90)).run()
    sizes = Counter(each.group for each in run.done)
    (hottest, _), *others = sizes.most_common()
    cold = [group for group, size in others if 4 <= size <= 8]
    assert len(run.holders(hottest)) == 8
    assert fmean(len(run.holders(group)) for group in cold) < 2.5
    assert run.hit_rate > 0.9 * run.ideal_hit_rate


def test_cold_prefixes_spread_over_idle_engines():
    run = Simulation(Setup(num_routers=4), no_sharing(num_jobs=160, per_s=8)).run()
    served = Counter(each.engine_id for each in run.done)
    assert len(served) == 8
    assert max(served.values()) < 2.5 * 160 / 8


def test_new_engine_warms_up():
    joined_at = 4.0
    setup = Setup(num_routers=4, num_engines=5, joins=(joined_at,))
    run = Simulation(setup, shared_prefix(num_jobs=700, per_s=60)).run()
    late = run.after(joined_at + 3.0)
    share = Counter(each.engine_id for each in late.done)
    assert share["engine-5"] > 0.75 * len(late.done) / 6
    newcomer = [each for each in late.done if each.engine_id == "engine-5"]
    hit_rate = sum(each.cached_tokens for each in newcomer) / sum(each.prompt_tokens for each in newcomer)
    assert hit_rate > 0.8 * late.hit_rate
    assert late.ttft_p99_s < 1.5 * Simulation(setup_without(setup), shared_prefix(num_jobs=700, per_s=60)).run().ttft_p99_s


def setup_without(setup: Setup) -> Setup:
    """Return the same without the engine that joins."""
    return Setup(num_routers=setup.num_routers, num_engines=setup.num_engines)


def test_every_replica_ends_up_with_what_the_engines_hold():
    simulation = Simulation(Setup(num_routers=3, num_engines=2), shared_prefix(num_jobs=80, per_s=20, num_groups=10))
    simulation.run()
    settled_at = simulation.clock.now + 1.0
    simulation.clock.run(lambda: simulation.clock.now >= settled_at)
    for router in simulation.routers:
        router.directory.check()
        for engine in simulation.engines.values():
            assert router.directory.num_resident(engine.engine_id) == engine.pool.num_resident
