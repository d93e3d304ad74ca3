from __future__ import annotations

import pytest
from octavo.random_model import SHAPES
from octavo.workloads import parse
from octavo_client.bench.peers import find_peer
from octavo_client.bench.roofline import Ceilings, ModelSize, Roofline

# One FLOP takes 0.01 s and one byte 1 s: memory bounds what reads much and computes little.
CEILINGS = Ceilings(copy_bytes_s=1.0, read_bytes_s=0.5, gemm_flop_s=100.0)
SIZE = ModelSize(layer_params=10, head_params=5, weight_bytes=30, kv_bytes=2, pair_flops=4)
ROOFLINE = Roofline(SIZE, CEILINGS)


def test_sizes_are_read_from_the_configuration() -> None:
    size = ModelSize.of(SHAPES["llama-8b"])
    assert size.weight_bytes == 2 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) + 4096 * 128256)
    assert size.kv_bytes == 128 * 1024
    assert size.pair_flops == 32 * 4 * 32 * 128
    assert ModelSize.of(SHAPES["llama-8b"], number_bytes=4).kv_bytes == 2 * size.kv_bytes


def test_the_better_bandwidth_is_the_ceiling() -> None:
    assert CEILINGS.bandwidth == 1.0


def test_a_small_step_is_bound_by_memory() -> None:
    assert ROOFLINE.step_s(batch=1, kv_tokens=7) == pytest.approx(30 + 14)


def test_a_large_step_is_bound_by_products() -> None:
    assert ROOFLINE.step_s(batch=1000, kv_tokens=7) == pytest.approx(2 * 15 * 1000 / 100 + 14)


def test_shared_keys_are_read_once_and_computed_for_each() -> None:
    assert ROOFLINE.step_s(batch=1, kv_tokens=1, pairs=100) == pytest.approx(30 + 4)


def test_prompts_compute_the_head_for_sampled_rows_alone() -> None:
    assert ROOFLINE.prompts_s(tokens=1000, samples=2, pairs=50) == pytest.approx((2 * 10 * 1000 + 2 * 5 * 2) / 100 + 2)


def test_a_decode_floor_takes_the_mean_context_of_its_steps() -> None:
    floors = ROOFLINE.floors(parse("decode:2:100"))
    assert floors == {"ms_per_step": pytest.approx(1e3 * ROOFLINE.step_s(2, 2 * 171.5))}


def test_one_group_of_one_has_nothing_to_share() -> None:
    shared = ROOFLINE.floors(parse("shared_prefix:1:1:60:40:10"))["seconds"]
    alone = ROOFLINE.floors(parse("steady_batch:1:100:10"))["seconds"]
    assert shared == pytest.approx(alone)


def test_every_metric_of_serving_but_the_tails_has_a_floor_with_one_client() -> None:
    assert set(ROOFLINE.floors(parse("serve:1"))) == {"out_tok_s", "itl_ms_p50", "ttft_ms_p50"}
    assert set(ROOFLINE.floors(parse("serve:8"))) == {"out_tok_s", "itl_ms_p50"}
    assert ROOFLINE.floors(parse("start")) == {}


@pytest.mark.parametrize("workload", ["single_stream", "prefill", "throughput"])
def test_twice_the_ceilings_give_twice_the_rate(workload: str) -> None:
    twice = Roofline(SIZE, Ceilings(copy_bytes_s=2.0, read_bytes_s=1.0, gemm_flop_s=200.0))
    ((metric, value),) = ROOFLINE.floors(parse(workload)).items()
    assert twice.floors(parse(workload))[metric] == pytest.approx(2 * value)


def test_a_peer_is_known_with_its_card_and_its_share_of_that_cards_limit() -> None:
    peer = find_peer("llama-8b", "offline", "decode:1:1024", "ms_per_step", "another card")
    assert peer is not None
    assert peer.hardware == "NVIDIA H100 80GB HBM3"
    assert peer.value == 6.546
    assert peer.fraction == pytest.approx(0.78, abs=0.02)


def test_no_peer_passes_its_own_limit() -> None:
    workloads = ["decode:128:1024", "prefill:16:4096", "steady_batch:64:1024:128", "throughput:512:100:1024"]
    metrics = ["ms_per_step", "in_tok_s", "seconds", "out_tok_s"]
    for workload, metric in zip(workloads, metrics, strict=True):
        peer = find_peer("llama-8b", "offline", workload, metric, "")
        assert peer is not None
        assert peer.fraction is not None
        assert 0.3 < peer.fraction < 1


def test_an_unknown_workload_has_no_peer() -> None:
    assert find_peer("llama-8b", "offline", "decode:3:7", "ms_per_step", "") is None
    assert find_peer("tiny", "offline", "decode:1:1024", "ms_per_step", "") is None
