from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo_router.policy import (
    DEFAULT_DECODE_S_PER_SEQUENCE,
    DEFAULT_PREFILL_TOKENS_PER_S,
    EngineView,
    Weights,
    rank,
)
from octavo_router.routing import Prompt

IDLE = EngineView(
    engine_id="a",
    matched_pages=0,
    page_size=16,
    waiting_tokens=0,
    num_running=0,
    pages_in_use=0,
    num_pages=1000,
    prefill_tokens_per_s=1000.0,
    decode_s_per_sequence=0.001,
    recent_tokens=0.0,
    recent_output_tokens=0.0,
)


def ids(costs):
    return [cost.engine_id for cost in costs]


def test_cost_is_the_sum_of_its_terms():
    view = replace(IDLE, matched_pages=2, waiting_tokens=100, num_running=8, pages_in_use=95, num_pages=200)
    (cost,) = rank([view], prompt_len=112, key=b"", weights=Weights(uncached=2.0, pool_s=0.15, decode=1.0))
    assert cost.uncached_tokens == 80
    assert cost.pool_usage == 0.5  # 95 in use and 5 new, of 200
    assert cost.prefill_s == pytest.approx(0.26)  # 100 ahead, and 80 twice: for itself and for the next one
    assert cost.pool_s == pytest.approx(0.15)
    assert cost.decode_s == pytest.approx(0.008)
    assert cost.cost_s == cost.prefill_s + cost.pool_s + cost.decode_s


def test_prefix_wins_between_idle_engines():
    assert ids(rank([IDLE, replace(IDLE, engine_id="b", matched_pages=4)], prompt_len=100, key=b"")) == ["b", "a"]


def test_key_names_what_siblings_share_and_sessions_of_one_system_prompt_do_not():
    system, parent = [1] * 64, [2] * 64
    one, other = (Prompt([*system, *parent, tail]) for tail in (3, 4))
    stranger = Prompt([*system, *([5] * 64)])
    assert one.key(64) == other.key(64) != stranger.key(64)
    assert one.key(0) == stranger.key(0), "while nobody holds the system prompt it is what counts"


def test_queue_longer_than_three_times_what_the_prefix_saves_loses():
    cached = replace(IDLE, engine_id="b", matched_pages=4, waiting_tokens=193)
    assert ids(rank([IDLE, cached], prompt_len=100, key=b"")) == ["b", "a"], "within the tie more match wins"
    assert ids(rank([IDLE, replace(cached, waiting_tokens=230)], prompt_len=100, key=b"")) == ["a", "b"]


def test_full_pool_loses_against_an_empty_one():
    full = replace(IDLE, engine_id="b", matched_pages=4, pages_in_use=990)
    assert ids(rank([full, IDLE], prompt_len=100, key=b"")) == ["a", "b"]


def test_overfull_pool_has_a_finite_cost():
    (cost,) = rank([replace(IDLE, pages_in_use=2000)], prompt_len=100, key=b"")
    assert cost.cost_s < 1000


def test_unknown_rates_are_those_of_the_others_or_the_defaults():
    unknown = replace(IDLE, engine_id="b", prefill_tokens_per_s=None, decode_s_per_sequence=None, num_running=1)
    weights = Weights(decode=1.0)
    by_id = {cost.engine_id: cost for cost in rank([IDLE, unknown], prompt_len=100, key=b"", weights=weights)}
    assert by_id["b"].prefill_tokens_per_s == 1000.0
    assert by_id["b"].decode_s == pytest.approx(0.001)
    (alone,) = rank([unknown], prompt_len=100, key=b"", weights=weights)
    assert alone.prefill_tokens_per_s == DEFAULT_PREFILL_TOKENS_PER_S
    assert alone.decode_s == DEFAULT_DECODE_S_PER_SEQUENCE


def test_last_prompt_token_is_always_computed():
    (cost,) = rank([replace(IDLE, matched_pages=4)], prompt_len=64, key=b"")
    assert cost.uncached_tokens == 1


def test_cold_prompts_spread_and_every_router_agrees():
    views = [replace(IDLE, engine_id=name) for name in "abcd"]
    keys = [bytes([number]) for number in range(200)]
    first = [rank(views, prompt_len=10, key=key)[0].engine_id for key in keys]
    again = [rank(views[::-1], prompt_len=10, key=key)[0].engine_id for key in keys]
    assert first == again
    assert all(first.count(name) > 25 for name in "abcd")


def test_engine_that_joins_takes_keys_from_all_and_moves_none_between_the_others():
    views = [replace(IDLE, engine_id=name) for name in "abc"]
    for number in range(100):
        before = rank(views[:2], prompt_len=10, key=bytes([number]))[0].engine_id
        after = rank(views, prompt_len=10, key=bytes([number]))[0].engine_id
        assert after in {before, "c"}


def test_of_equals_the_one_that_was_sent_less_lately_gets_more():
    views = [replace(IDLE, engine_id=name, recent_tokens=tokens) for name, tokens in {"a": 990.0, "b": 1010.0}.items()]
    first = [rank(views, prompt_len=10, key=number.to_bytes(2, "little"))[0].engine_id for number in range(1000)]
    assert 730 < first.count("a") < 810, "e^1.2 times as many: 77 %"
    cached = replace(views[1], matched_pages=1)
    assert ids(rank([views[0], cached], prompt_len=1000, key=b"")) == ["b", "a"], "a cached page comes first"


def test_recent_work_is_prompts_and_outputs_at_the_engines_rates():
    (cost,) = rank([replace(IDLE, recent_tokens=500.0, recent_output_tokens=128.0)], prompt_len=10, key=b"")
    assert cost.recent_s == pytest.approx(0.5 + 128 * 0.001)
    assert cost.cost_s == cost.prefill_s + cost.pool_s + cost.decode_s, "it is no part of the cost"


def test_no_engine_gives_no_ranking():
    assert rank([], prompt_len=10, key=b"") == []


VIEWS = st.lists(
    st.builds(
        EngineView,
        engine_id=st.text("abcdefgh", min_size=1, max_size=3),
        matched_pages=st.integers(0, 8),
        page_size=st.just(16),
        waiting_tokens=st.integers(0, 10_000),
        num_running=st.integers(0, 500),
        pages_in_use=st.integers(0, 1000),
        num_pages=st.integers(1, 1000),
        prefill_tokens_per_s=st.none() | st.floats(1, 1e6),
        decode_s_per_sequence=st.none() | st.floats(1e-6, 1),
        recent_tokens=st.floats(0, 1e9),
        recent_output_tokens=st.floats(0, 1e9),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda view: view.engine_id,
)


@given(VIEWS, st.integers(1, 200), st.binary(max_size=4))
def test_best_is_never_more_than_the_tie_above_the_cheapest(views, prompt_len, key):
    costs = rank(views, prompt_len=prompt_len, key=key)
    assert sorted(ids(costs)) == sorted(view.engine_id for view in views)
    assert costs[0].cost_s <= min(cost.cost_s for cost in costs) * (1 + Weights().tie)
    assert all(cost.cost_s >= 0 for cost in costs)
    assert costs == rank(views[::-1], prompt_len=prompt_len, key=key)
