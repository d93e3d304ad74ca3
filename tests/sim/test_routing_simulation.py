"""What the cost policy, the directory and placement notes achieve together: real code of both sides on a virtual clock."""

from __future__ import annotations

from collections import Counter
from functools import cache
from statistics import fmean

import pytest
from sim.engine import PAGE_SIZE
from sim.results import Done, Result
from sim.rivals import consistent_hash, power_of_two, round_robin
from sim.simulation import OMNISCIENT, Setup, Simulation
from sim.workloads import no_sharing, shared_prefix, suite, trace

NUM_JOBS = 300
SETUPS = {
    "omniscient": lambda: Setup(delays=OMNISCIENT),
    "eight routers": lambda: Setup(num_routers=8),
    "without notes": lambda: Setup(num_routers=8, keeps_notes=False),
    "round robin": lambda: Setup(num_routers=8, choose=round_robin()),
    "power of two": lambda: Setup(num_routers=8, choose=power_of_two(seed=1)),
    "consistent hash": lambda: Setup(num_routers=8, choose=consistent_hash()),
}


@cache
def result(setup: str, workload: str, num_jobs: int = NUM_JOBS) -> Result:
    """Run once what several tests look at."""
    return Simulation(SETUPS[setup](), suite(num_jobs)[workload]).run()


def test_same_seed_gives_the_same_run():
    workload = shared_prefix(num_jobs=60, per_s=80)
    first, second = (Simulation(Setup(num_routers=2, num_engines=2), workload).run() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("rival", ["round robin", "power of two", "consistent hash"])
def test_sessions_are_served_sooner_than_by_rivals(rival):
    ours, theirs = result("eight routers", "multi-turn"), result(rival, "multi-turn")
    assert ours.hit_rate > theirs.hit_rate + 0.2
    assert ours.ttft_mean_s < theirs.ttft_mean_s
    assert ours.e2e_mean_s < theirs.e2e_mean_s


def test_prompts_that_share_nothing_fare_no_worse_than_with_power_of_two():
    ours, theirs = result("eight routers", "no sharing", 400), result("power of two", "no sharing", 400)
    assert ours.load_cov < 0.06
    assert ours.hit_rate == theirs.hit_rate == 0.0
    assert ours.ttft_mean_s <= theirs.ttft_mean_s
    assert ours.ttft_p99_s <= theirs.ttft_p99_s
    assert ours.e2e_mean_s <= 1.01 * theirs.e2e_mean_s


def test_placement_notes_keep_siblings_together_and_routers_without_them_are_not_blind():
    alone = result("without notes", "sibling bursts")
    assert alone.hit_rate < result("eight routers", "sibling bursts").hit_rate - 0.05
    assert alone.hit_rate > result("power of two", "sibling bursts").hit_rate + 0.05


def test_hot_prefix_replicates_as_far_as_it_must_and_cold_prefixes_stay_together():
    run = result("eight routers", "hot prefix")
    sizes = Counter(each.group for each in run.done)
    (hottest, num_hottest), *others = sizes.most_common()
    assert num_hottest > len(run.done) / 8, "the hottest prefix is asked more often than one engine can serve"
    cold = [group for group, size in others if 4 <= size <= 8]
    assert len(run.holders(hottest)) > 1
    assert fmean(len(run.holders(group)) for group in cold) < 2.5
    assert run.hit_rate > 0.9 * run.ideal_hit_rate


def test_prefix_that_nearly_everyone_asks_for_comes_to_every_engine():
    run = Simulation(Setup(num_routers=8), shared_prefix(num_jobs=300, per_s=250, skew=4.0)).run()
    assert len(run.holders(0)) == 8


def test_cold_prefixes_spread_over_idle_engines():
    run = Simulation(Setup(num_routers=4), no_sharing(num_jobs=120, per_s=10)).run()
    served = Counter(each.engine_id for each in run.done)
    assert len(served) == 8
    assert max(served.values()) < 2.5 * 120 / 8


def test_new_engine_warms_up():
    joined_at = 2.5
    setup = Setup(num_routers=4, num_engines=5, joins=(joined_at,))
    shares, hits = [], []
    for seed in (1, 101, 201):
        run = Simulation(setup, shared_prefix(seed=seed, num_jobs=420, per_s=60)).run()
        since, later = run.after(joined_at), run.after(joined_at + 1.0)
        shares.append(len(at_engine(since, "engine-5")) / len(since.done))
        warm = at_engine(later, "engine-5")
        hit_rate = sum(each.cached_tokens for each in warm) / sum(each.prompt_tokens for each in warm)
        hits.append(hit_rate / later.hit_rate)
    assert fmean(hits) > 0.8, "it gets the prefixes"
    assert fmean(shares) > 0.7 / 6, "and nearly its share of the requests from the beginning"


def at_engine(result: Result, engine_id: str) -> list[Done]:
    """Return the requests that an engine served."""
    return [each for each in result.done if each.engine_id == engine_id]


def test_every_replica_ends_up_with_what_the_engines_hold():
    simulation = Simulation(Setup(num_routers=3, num_engines=2), shared_prefix(num_jobs=80, per_s=20, num_groups=10))
    simulation.run()
    settled_at = simulation.clock.now + 1.0
    simulation.clock.run(lambda: simulation.clock.now >= settled_at)
    for router in simulation.routers:
        router.directory.check()
        for engine in simulation.engines.values():
            assert router.directory.num_resident(engine.engine_id) == engine.pool.num_resident


def test_trace_is_replayed_page_by_page(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 1024, "output_length": 80, "hash_ids": [0, 1]}\n'
        '{"timestamp": 9000, "input_length": 1536, "output_length": 8, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 9000, "input_length": 512, "output_length": 8, "hash_ids": [0]}\n'
    )
    workload = trace(path, num_jobs=2, speed=2.0)
    (first_at, first), (second_at, second) = workload.arrivals
    assert (first_at < 1.5, 4.5 <= second_at < 6.0) == (True, True)
    assert len(first.prompt) == 2 * PAGE_SIZE + 1
    assert second.prompt[: 2 * PAGE_SIZE] == first.prompt[: 2 * PAGE_SIZE]
    assert (first.max_tokens, second.max_tokens) == (10, 1)
    run = Simulation(Setup(num_engines=2), workload).run()
    assert [each.cached_tokens for each in run.done] == [0, 2 * PAGE_SIZE]
