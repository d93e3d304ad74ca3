"""Attention on tensor cores: bits that agree between kernels, at every edge, in bf16; CUDA graphs; pools beyond 32 bits.

Runs on a GPU only; the same properties are shown in fp32 by the interpreter, in tests/unit/kernels.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from octavo_kernels.cascade import find_shared, set_shared
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.decode_plan import allocate_plan, plan_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.extend_hopper import launch_hopper, supports
from octavo_kernels.heuristics import EXTEND, EXTEND_EXACT, lookup
from unit.kernels.exact_attention import CHUNK, decode, extend, plan_for, sequence
from unit.kernels.paged_batch import DEVICE, ON_GPU, Shape, make_batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device and compiled kernels")]

# Around pages (16), tiles (64) and chunks (256).
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 129, 255, 256, 257, 319, 321, 511, 512, 513, 767, 1025, 2047, 2049, 2100]
OPTIONS = [{}, {"window": 100}, {"window": 700}, {"softcap": 20.0}]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_decode_and_chunked_prefill_give_the_bits_of_a_whole_prefill(head_dim: int, group: int, option) -> None:
    shape = Shape(head_dim, group, 16, dtype=torch.bfloat16, softcap=option.get("softcap", 0.0), kv_heads=2)
    window = option.get("window", 0)
    batch, options = sequence(shape, LENGTHS[-1], window=window)
    whole, whole_lse = extend(batch, 0, LENGTHS[-1], options)
    for first, stop in itertools.pairwise([0, *LENGTHS]):
        out, lse = extend(batch, first, stop, options)
        assert torch.equal(out, whole[first:stop]), (first, stop)
        assert torch.equal(lse, whole_lse[first:stop]), (first, stop)
    rows = torch.tensor(LENGTHS, device=DEVICE) - 1
    tickets = torch.zeros(len(LENGTHS) * shape.kv_heads, dtype=torch.int32, device=DEVICE)
    for how in (
        {},
        {"plan": plan_for(batch, len(LENGTHS), window=window)},
        {"tickets": tickets},
        {"span": 3},
        {"span": 8},
    ):
        plan = how.pop("plan", None)
        for _ in range(20):
            out, lse = decode(batch, LENGTHS, options | how, plan)
            assert torch.equal(out, whole[rows])
            assert torch.equal(lse, whole_lse[rows])


@pytest.mark.parametrize("group", [2, 4])
def test_sharing_prefixes_changes_no_bit(group: int) -> None:
    """Four groups of sixteen sequences; within a group the first four chunks lie in the same pages."""
    shape = Shape(128, group, 16, dtype=torch.bfloat16, kv_heads=8)
    batch = make_batch(shape, [4 * CHUNK + 150 + row % 16 for row in range(64)], [1] * 64)
    pages = 4 * CHUNK // 16
    for row in range(64):
        batch.block_table[row, :pages] = batch.block_table[row // 16 * 16, :pages]
    plan = allocate_plan(
        max_batch=64, max_len=batch.block_table.shape[1] * 16, num_kv_heads=8, chunk=CHUNK, programs=264,
        device=DEVICE, shared_tiles=4, members=64 // group,
    )  # fmt: skip
    out, shared = (torch.full_like(batch.q, torch.nan) for _ in range(2))
    workspace = torch.empty(decode_workspace_size(*batch.q.shape, batch.block_table.shape[1] * 16), device=DEVICE)
    arguments = (batch.q, batch.k, batch.v, batch.block_table, batch.seq_lens)
    paged_decode(*arguments, out, workspace, exact=True, **batch.options)
    tiles = find_shared(
        batch.block_table.tolist(), batch.seq_lens.tolist(), page_size=16, chunk=CHUNK, members=64 // group
    )
    assert len(tiles) == 4
    set_shared(plan, tiles)
    plan_decode(plan, batch.seq_lens)
    for _ in range(20):
        paged_decode(*arguments, shared, workspace, exact=True, plan=plan, **batch.options)
        assert torch.equal(shared, out)


def test_one_cuda_graph_with_a_plan_serves_all_lengths() -> None:
    batch = make_batch(Shape(128, 4, 16, dtype=torch.bfloat16), [2000, 0, 700, 1], [1, 1, 1, 1])
    width = batch.block_table.shape[1] * 16
    plan = allocate_plan(max_batch=4, max_len=width, num_kv_heads=8, chunk=CHUNK, programs=264, device=DEVICE)
    out, expected = torch.empty_like(batch.q), torch.empty_like(batch.q)
    workspace = torch.empty(decode_workspace_size(*batch.q.shape, width), device=DEVICE)
    arguments = (batch.q, batch.k, batch.v, batch.block_table, batch.seq_lens)

    def step() -> None:
        plan_decode(plan, batch.seq_lens)
        paged_decode(*arguments, out, workspace, exact=True, plan=plan, **batch.options)

    step()  # compiles: a capture cannot load modules
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([2000, 0, 700, 1], [1, 513, 0, 0], [1900, 600, 64, 0]):
        batch.seq_lens.copy_(torch.tensor(lengths))
        graph.replay()
        paged_decode(*arguments, expected, workspace, exact=True, **batch.options)
        seen = torch.tensor(lengths, device=DEVICE) <= torch.tensor([2000, 0, 700, 1], device=DEVICE)
        assert torch.equal(out[seen], expected[seen])


_FIRST_ROW = 300  # as many decodes as stand before the chunks of a step: whole blocks of the chunks' kernel
RAGGED = ([17, 37, 64, 1, 0, 0, 20, 70, 1000, 5000, 9000], [17, 5, 1, 1, 1, 0, 9, 70, 1000, 300, 1])


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("hint", [True, False], ids=["longest known", "longest unknown"])
@pytest.mark.parametrize(
    ("head_dim", "group", "page_size", "dtype"),
    [(128, 4, 16, torch.bfloat16), (128, 1, 64, torch.bfloat16), (128, 5, 32, torch.float16),
     (128, 7, 16, torch.bfloat16)],
)  # fmt: skip
@pytest.mark.parametrize(
    "lengths", [RAGGED, ([3000, 2048], [512, 1024]), ([4096], [4096])], ids=["ragged", "two", "one"]
)
def test_hoppers_kernel_gives_the_bits_of_the_other(
    lengths: tuple[list[int], list[int]], head_dim: int, group: int, page_size: int, dtype, hint: bool, exact: bool
) -> None:
    batch = make_batch(Shape(head_dim, group, page_size, dtype=dtype), *lengths, padding_rows=400)
    batch.cu_q += _FIRST_ROW  # the rows before, and some of the last, belong to no sequence
    if not supports(batch.q, batch.k, batch.v, is_plain=True):
        pytest.skip("needs a Hopper GPU, and the release of Triton that its kernel is written for")
    arguments = (batch.q, batch.k, batch.v, batch.block_table, batch.cu_q, batch.seq_lens)
    options = {"scale": head_dim**-0.5, "max_q_len": max(lengths[1]) if hint else None}
    tile = lookup(EXTEND_EXACT if exact else EXTEND, 90, head_dim, group, dtype, page_size)
    (expected, expected_lse), (out, lse), (again, _) = (
        (torch.full_like(batch.q, 7.0), torch.full(batch.q.shape[:2], 7.0, device=DEVICE)) for _ in range(3)
    )
    paged_extend(*arguments, expected, lse=expected_lse, exact=exact, tile=tile, **options)
    launch_hopper(*arguments, out, lse, chunk=CHUNK if exact else 0, **options)
    launch_hopper(*arguments, again, None, chunk=CHUNK if exact else 0, **options)
    assert (out[:_FIRST_ROW] == 7).all()
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
    assert torch.equal(again, out)
