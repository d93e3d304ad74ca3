"""Exact attention: a query's bits are the same by decode, by extend in chunks of any size, and beside any neighbours."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from octavo_kernels.cascade import SharedTile, find_shared, set_shared
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.decode_plan import plan_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.heuristics import EXTEND, EXTEND_EXACT, lookup
from octavo_kernels.launch import architecture, interpreted
from triton.runtime import interpreter
from unit.kernels.exact_attention import CHUNK, DTYPE, HEAD_DIM, decode, exact_shape, extend, plan_for, sequence
from unit.kernels.paged_batch import DEVICE, ON_GPU, Shape, assert_close, assert_lse_close, make_batch


@pytest.fixture(autouse=True)
def products_that_do_not_see_the_row(monkeypatch) -> None:
    """In numpy a row's product depends on its place in the tile, in the last bit; sums in fp64 hide that."""
    if not interpreted():
        return

    def create_dot(_builder, a, b, d, *_options):
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return interpreter.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


CASES = [
    (exact_shape(), 0),
    (exact_shape(group=1), 0),
    (exact_shape(group=2, softcap=20.0, sinks=True, kv_heads=2), 0),
    (exact_shape(group=8), CHUNK // 3),
    (exact_shape(sinks=True), CHUNK + 7),
]
if not ON_GPU:  # interpreted, each case takes seconds
    CASES = CASES[::2]
IDS = [f"{shape}-{window}" for shape, window in CASES]


@pytest.mark.parametrize(("shape", "window"), CASES, ids=IDS)
def test_chunks_of_any_size_give_the_bits_of_a_whole_prefill(shape: Shape, window: int) -> None:
    length = 2 * CHUNK + 9
    batch, options = sequence(shape, length, window=window)
    whole, whole_lse = extend(batch, 0, length, options)
    cuts = [0, 1, 16, 17, 33, CHUNK - 1, CHUNK, CHUNK + 1, length]
    for first, stop in itertools.pairwise(cuts):
        out, lse = extend(batch, first, stop, options)
        assert torch.equal(out, whole[first:stop]), (first, stop)
        assert torch.equal(lse, whole_lse[first:stop]), (first, stop)


@pytest.mark.parametrize(("shape", "window"), CASES, ids=IDS)
@pytest.mark.parametrize("way", ["listed", "tickets", "span 1", "span 2"])
def test_decode_gives_the_bits_of_a_prefill(shape: Shape, window: int, way: str) -> None:
    length = 2 * CHUNK + 9
    batch, options = sequence(shape, length, window=window)
    whole, whole_lse = extend(batch, 0, length, options)
    lengths = [1, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1, length]
    plan = plan_for(batch, len(lengths), window=window) if way == "listed" else None
    if way == "tickets":
        options["tickets"] = torch.zeros(len(lengths) * shape.kv_heads, dtype=torch.int32, device=DEVICE)
    elif way.startswith("span"):
        options["span"] = int(way.removeprefix("span "))
    rows = torch.tensor(lengths, device=DEVICE) - 1
    for _ in range(20 if ON_GPU else 2):  # the second time shows that tickets are back at zero
        out, lse = decode(batch, lengths, options, plan)
        assert torch.equal(out, whole[rows])
        assert torch.equal(lse, whole_lse[rows])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("window", [0, CHUNK + 7])
def test_staggering_changes_no_bit(window: int, exact: bool) -> None:
    batch, options = sequence(exact_shape(softcap=20.0, sinks=True), 2 * CHUNK + 9, window=window)
    table = EXTEND_EXACT if exact else EXTEND
    tile = lookup(table, architecture(), HEAD_DIM, 4, DTYPE, 16)
    length = batch.q.shape[0]
    plain, staggered = (
        extend(batch, 3, length, {**options, "exact": exact, "tile": replace(tile, stagger=stagger)})
        for stagger in (False, True)
    )
    assert torch.equal(plain[0], staggered[0])
    assert torch.equal(plain[1], staggered[1])


def test_exact_results_equal_the_reference() -> None:
    batch = make_batch(exact_shape(sinks=True), [3 * CHUNK + 5, 7, 0, CHUNK], [40, 7, 0, 1])
    out, lse = torch.full_like(batch.q, torch.nan), torch.full(batch.q.shape[:2], torch.nan, device=DEVICE)
    paged_extend(
        batch.q, batch.k, batch.v, batch.block_table, batch.cu_q, batch.seq_lens, out,
        lse=lse, exact=True, chunk=CHUNK, **batch.options,
    )  # fmt: skip
    expected, expected_lse = batch.expected()
    assert_close(out, expected, DTYPE)
    assert_lse_close(lse, expected_lse)


def test_a_plan_serves_padded_rows_and_longer_tables() -> None:
    batch, options = sequence(exact_shape(), CHUNK + 3)
    plan = plan_for(batch, 8)
    expected, _ = decode(batch, [CHUNK + 3], options)
    q = batch.q[-1:].repeat(3, 1, 1)
    seq_lens = torch.tensor([0, CHUNK + 3, 0], dtype=torch.int32, device=DEVICE)
    table = torch.nn.functional.pad(batch.block_table, (0, 50)).repeat(3, 1)
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=DEVICE)
    workspace = torch.full((decode_workspace_size(*q.shape, table.shape[1] * 16, CHUNK),), torch.nan, device=DEVICE)
    plan_decode(plan, seq_lens)
    paged_decode(q, batch.k, batch.v, table, seq_lens, out, workspace, lse=lse, plan=plan, **options)
    assert torch.equal(out[1], expected[0])
    assert (out[[0, 2]] == 0).all()
    assert (lse[[0, 2]] == -torch.inf).all()


@pytest.mark.parametrize("group", [1, 4])
def test_sharing_a_prefix_changes_no_bit(group: int) -> None:
    """Three of four sequences share two chunks of pages, the fourth is shorter than that."""
    batch, options = sequence(exact_shape(group=group), 3 * CHUNK)
    lengths = [2 * CHUNK + 1, 2 * CHUNK + 30, 3 * CHUNK, CHUNK - 5]
    alone, alone_lse = decode(batch, lengths, options)
    plan = plan_for(batch, 4, shared_tiles=2, members=3)
    set_shared(plan, [SharedTile(rows=(0, 2, 1), shared_len=2 * CHUNK)])
    for _ in range(2):
        shared, shared_lse = decode(batch, lengths, options, plan)
        assert torch.equal(shared, alone)
        assert torch.equal(shared_lse, alone_lse)
    set_shared(plan, [])
    assert torch.equal(decode(batch, lengths, options, plan)[0], alone)


def test_shared_pages_are_read_through_one_table() -> None:
    batch, options = sequence(exact_shape(), 2 * CHUNK)
    lengths = [CHUNK + 1, 2 * CHUNK]
    expected, _ = decode(batch, lengths, options)
    plan = plan_for(batch, 2, shared_tiles=1, members=2)
    set_shared(plan, [SharedTile(rows=(1, 0), shared_len=CHUNK)])
    table = batch.block_table.repeat(2, 1)
    table[0, : CHUNK // 16] = 0  # never read: row 1 speaks for both
    assert torch.equal(decode(batch, lengths, options, plan, table)[0], expected)


def test_groups_have_the_longest_common_chunks() -> None:
    a, b, c = [1, 2], [3, 4], [5, 6]
    tables = [[*a, *b, 10], [*a, *b, 11], [*a, *c, 12], [7, 8], [*a, *b, 13]]
    tiles = find_shared(tables, [70, 70, 70, 30, 70], page_size=16, chunk=32, members=16)
    assert tiles == [SharedTile(rows=(0, 1, 4), shared_len=64)]


def test_a_short_prefix_of_many_beats_a_long_one_of_few() -> None:
    a, b = [1, 2], [3, 4]
    tables = [[*a, *b, 10], [*a, *b, 11], [*a, 12], [*a, 13], [*a, 14]]
    tiles = find_shared(tables, [70, 70, 40, 40, 40], page_size=16, chunk=32, members=16)
    assert tiles == [SharedTile(rows=(0, 1, 2, 3, 4), shared_len=32)]


def test_the_newest_token_is_never_shared() -> None:
    tables = [[1, 2, 3], [1, 2, 4]]
    assert find_shared(tables, [32, 33], page_size=16, chunk=32, members=2) == []
    assert find_shared(tables, [33, 33], page_size=16, chunk=32, members=2) != []


def test_large_groups_fill_several_tiles() -> None:
    tables = [[1, 2, 100 + row] for row in range(5)]
    tiles = find_shared(tables, [40] * 5, page_size=16, chunk=32, members=2)
    assert [tile.rows for tile in tiles] == [(0, 1), (2, 3)]  # the fifth is cheaper to read alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 2 * CHUNK}, "plan: chunk"),
        ({"window": 5}, "plan: chunk"),
    ],
)
def test_a_plan_must_fit_the_launch(change, message) -> None:
    batch, options = sequence(exact_shape(), 20)
    with pytest.raises(ValueError, match=message):
        decode(batch, [20], {**options, **change}, plan_for(batch, 1))


def test_an_exact_chunk_holds_whole_tiles() -> None:
    batch, options = sequence(exact_shape(), 20)
    with pytest.raises(ValueError, match="chunk: 40"):
        extend(batch, 0, 20, {**options, "chunk": 40})
