from __future__ import annotations

import random

import pytest
from octavo_engine.budget import StepBudget


def taught(budget: StepBudget, *, floor=0.005, per_token=0.0001, per_decode=0.0002, num_steps=200) -> StepBudget:
    """Teach a budget steps of a device with these costs, with a noise of five percent."""
    noise = random.Random(3)
    for _ in range(num_steps):
        tokens, decodes = noise.choice([0, 64, 128, 256]), noise.choice([0, 8, 32])
        if tokens or decodes:
            seconds = (floor + per_token * tokens + per_decode * decodes) * noise.uniform(0.95, 1.05)
            budget.observe(seconds, num_prefill_tokens=tokens, num_decodes=decodes)
    return budget


def test_without_a_target_prefill_gets_what_decodes_leave():
    assert StepBudget(max_step_tokens=256).prefill_room(56) == 200


def test_nothing_is_known_at_first():
    budget = StepBudget(max_step_tokens=256, itl_target_s=0.02)
    assert (budget.prefill_tokens_per_s, budget.decode_s_per_sequence) == (0.0, 0.0)
    assert budget.prefill_room(56) == 200


def test_costs_are_learnt_from_steps():
    budget = taught(StepBudget(max_step_tokens=1024))
    assert budget.prefill_tokens_per_s == pytest.approx(10_000, rel=0.1)
    assert budget.decode_s_per_sequence == pytest.approx(0.0002, rel=0.2)
    assert budget.floor_s == pytest.approx(0.005, rel=0.2)


def test_sustained_rate_is_right_where_all_steps_are_of_one_size():
    budget = StepBudget(max_step_tokens=1000)
    assert budget.sustained_prefill_tokens_per_s == 0.0
    for _ in range(6):
        budget.observe(0.012 + 0.000125 * 1000, num_prefill_tokens=1000, num_decodes=0)
    assert budget.sustained_prefill_tokens_per_s == pytest.approx(1000 / 0.137, rel=0.02)
    assert budget.prefill_tokens_per_s > 1.5 * 8000, "nothing tells the slope from the floor"


def test_with_a_target_prefill_fills_the_step_up_to_it():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.025))
    assert budget.prefill_room(32) == pytest.approx((0.025 - 0.005 - 32 * 0.0002) / 0.0001, rel=0.15)


def test_the_target_does_not_bind_when_nobody_waits_for_the_next_token():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.025))
    assert budget.prefill_room(0) == 1024


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_a_target_that_decodes_alone_miss_leaves_prefill_its_share(share: float):
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.001, prefill_share=share))
    assert budget.prefill_room(32) == pytest.approx(share * (0.005 + 32 * 0.0002) / 0.0001, rel=0.15)


@pytest.mark.parametrize("seconds", [0.0006, 2.0])
def test_one_step_read_too_early_or_too_late_moves_little(seconds: float):
    """A step that was done while the host compiled the next one's kernels looks as if it had taken no time."""
    budget = StepBudget(max_step_tokens=8192, itl_target_s=0.03)

    def run(num_steps: int) -> None:
        for step in range(num_steps):
            num_prefill = 0 if step % 8 else 1024
            budget.observe(0.006 + 0.000024 * num_prefill, num_prefill_tokens=num_prefill, num_decodes=32)

    run(200)
    before, rate = budget.prefill_room(32), budget.prefill_tokens_per_s
    budget.observe(seconds, num_prefill_tokens=1024, num_decodes=32)
    assert budget.prefill_tokens_per_s < 6 * rate
    run(120)
    assert budget.prefill_room(32) == pytest.approx(before, rel=0.15)


@pytest.mark.parametrize("granule", [1, 256])
def test_steps_of_seconds_are_soon_outweighed_by_good_ones(granule: int):
    """The first steps compile kernels. Steps with chunks cost 10 ms more than the model knows, so small ones look dear."""
    budget = StepBudget(max_step_tokens=8192, itl_target_s=0.03, granule=granule)
    for seconds in (5.0, 4.0, 6.0, 5.0):
        budget.observe(seconds, num_prefill_tokens=8192, num_decodes=0)
    for _ in range(40):
        room = budget.prefill_room(128)
        budget.observe(0.0015 + 0.00006 * 128, num_prefill_tokens=0, num_decodes=128)
        budget.observe(max(0.011, 0.004 + 0.000024 * (room + 128)), num_prefill_tokens=room, num_decodes=128)
    assert budget.prefill_room(128) + 128 == pytest.approx((0.03 - 0.004) / 0.000024, rel=0.15, abs=granule / 2)


def test_a_step_with_decodes_takes_no_more_tokens_than_are_enough():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.2, enough_tokens=300))
    assert (budget.prefill_room(8), budget.prefill_room(0)) == (292, 1024)
    assert budget.prefill_room(299) == 150, "half of them are left to prefill"


def test_a_step_with_decodes_is_rounded_to_whole_granules():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.025, granule=64))
    exact = (0.025 - 0.005 - 8 * 0.0002) / 0.0001
    room = budget.prefill_room(8)
    assert (room + 8) % 64 == 0
    assert room == pytest.approx(exact, abs=32 + 0.15 * exact)


def test_rounding_leaves_a_chunk_that_is_smaller_than_a_granule():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.001, granule=1024))
    assert 0 < budget.prefill_room(32) < 512


def test_prefill_gets_its_minimum_however_short_a_step_is():
    budget = taught(StepBudget(max_step_tokens=1024, itl_target_s=0.001, min_chunk=16), floor=0.0, per_decode=0.00001)
    assert budget.prefill_room(1) == 16


def test_the_hard_limit_holds_against_the_minimum():
    budget = taught(StepBudget(max_step_tokens=40, itl_target_s=0.001, min_chunk=16))
    assert budget.prefill_room(32) == 8
    assert budget.prefill_room(100) == 0


def test_one_disturbed_step_changes_little():
    budget = taught(StepBudget(max_step_tokens=1024))
    before = budget.prefill_tokens_per_s
    budget.observe(30.0, num_prefill_tokens=128, num_decodes=8)
    assert budget.prefill_tokens_per_s == pytest.approx(before, rel=0.35)


def test_a_device_that_becomes_slower_is_noticed():
    budget = taught(StepBudget(max_step_tokens=1024))
    taught(budget, per_token=0.0003)
    assert budget.prefill_tokens_per_s == pytest.approx(3_333, rel=0.15)


def test_many_steps_without_prefill_do_not_forget_its_cost():
    budget = taught(StepBudget(max_step_tokens=1024))
    for _ in range(2000):
        budget.observe(0.005 + 0.0002 * 8, num_prefill_tokens=0, num_decodes=8)
    assert budget.prefill_tokens_per_s == pytest.approx(10_000, rel=0.2)


def test_costs_are_never_negative():
    budget = StepBudget(max_step_tokens=1024)
    for tokens, seconds in [(100, 0.1), (200, 0.05), (400, 0.02), (800, 0.01)] * 10:
        budget.observe(seconds, num_prefill_tokens=tokens, num_decodes=1)
    assert budget.prefill_tokens_per_s >= 0
    assert budget.decode_s_per_sequence >= 0
    assert budget.floor_s > 0


def test_a_clock_that_stands_still_teaches_nothing():
    budget = StepBudget(max_step_tokens=1024)
    for _ in range(10):
        budget.observe(0.0, num_prefill_tokens=100, num_decodes=0)
    assert budget.prefill_tokens_per_s == 0.0


@pytest.mark.parametrize(("max_step_tokens", "min_chunk"), [(0, 1), (16, 0)])
def test_an_impossible_budget_is_refused(max_step_tokens: int, min_chunk: int):
    with pytest.raises(ValueError, match="one is below 1"):
        StepBudget(max_step_tokens=max_step_tokens, min_chunk=min_chunk)
