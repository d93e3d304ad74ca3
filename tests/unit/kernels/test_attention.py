"""Paged attention against an fp64 reference, and the equalities that hold whatever the reference says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo_kernels import reference
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.merge_states import merge_states
from unit.kernels.paged_batch import (
    DEVICE,
    ON_GPU,
    SHAPES,
    Shape,
    assert_close,
    assert_lse_close,
    make_batch,
    tricky_lengths,
)

# Fresh prompt, longer than a page; chunk over a prefix; decodes; padding; nothing new; a page boundary inside.
Q_LENS, LENGTHS = [17, 5, 1, 1, 1, 0, 9], [17, 37, 64, 1, 0, 20, 70]
if ON_GPU:
    Q_LENS, LENGTHS = [*Q_LENS, 1000, 300, 1], [*LENGTHS, 1000, 5000, 9000]

PLAIN = Shape(32, 4, 16)
TENSOR_CORES = [Shape(128, 4, 16, dtype=torch.bfloat16), Shape(64, 8, 64, dtype=torch.bfloat16)] if ON_GPU else []


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_equals_reference(shape: Shape) -> None:
    lengths = tricky_lengths(shape)
    batch = make_batch(shape, lengths, [1] * len(lengths))
    out, lse = batch.decode()
    expected_out, expected_lse = batch.expected()
    assert_close(out, expected_out, shape.dtype)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_extend_equals_reference(shape: Shape) -> None:
    batch = make_batch(shape, LENGTHS, Q_LENS)
    out, lse = batch.extend()
    expected_out, expected_lse = batch.expected()
    assert_close(out, expected_out, shape.dtype)
    assert_lse_close(lse, expected_lse)


@settings(max_examples=10, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=4),
    group=st.sampled_from([1, 3, 4]),
    window=st.sampled_from([0, 0, 1, 16, 17]),
    hint=st.booleans(),
)
def test_extend_equals_reference_for_any_ragged_batch(sequences, group, window, hint) -> None:
    q_lens = [q_len for q_len, _ in sequences]
    batch = make_batch(Shape(32, group, 16, window=window, kv_heads=1), [sum(pair) for pair in sequences], q_lens)
    out, lse = batch.extend(max_q_len=max(q_lens) if hint else None)
    expected_out, expected_lse = batch.expected()
    assert_close(out, expected_out, torch.float32)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("window", [0, 20])
def test_paged_reference_equals_contiguous_attention(window: int) -> None:
    batch = make_batch(Shape(32, 4, 16, window=window), [50], [13])
    table = batch.block_table[0, :4].long()
    keys, values = (x.nan_to_num(0.0)[table].transpose(0, 1).flatten(1, 2)[:, :50].double() for x in (batch.k, batch.v))
    query_pos, key_pos = torch.arange(37, 50, device=DEVICE)[:, None], torch.arange(50, device=DEVICE)
    visible = (key_pos <= query_pos) & (key_pos > query_pos - (window or 50))
    kv_heads = batch.shape.kv_heads
    grouped = batch.q.double().view(13, kv_heads, 4, 32).permute(1, 2, 0, 3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        grouped, keys[:, None].expand(-1, 4, -1, -1), values[:, None].expand(-1, 4, -1, -1), attn_mask=visible
    )
    out, _ = batch.expected()
    torch.testing.assert_close(out, expected.permute(2, 0, 1, 3).flatten(1, 2))


def test_empty_sequence_gives_zeros_and_no_weight() -> None:
    batch = make_batch(Shape(32, 4, 16, sinks=True), [0, 5], [1, 1])
    for out, lse in (batch.decode(), batch.extend()):
        assert (out[0] == 0).all()
        assert (lse[0] == -torch.inf).all()
        assert not out[1].isnan().any()


def test_extend_leaves_padding_rows_alone() -> None:
    batch = make_batch(PLAIN, [17, 5], [17, 1], padding_rows=14)
    for hint in (None, 17):
        out, lse = batch.extend(max_q_len=hint)
        assert not out[:18].isnan().any()
        assert out[18:].isnan().all()
        assert lse[18:].isnan().all()


@pytest.mark.parametrize("shape", [Shape(64, 5, 16, sinks=True), Shape(32, 4, 32, window=40)], ids=str)
def test_extend_by_one_token_equals_decode(shape: Shape) -> None:
    lengths = [1, shape.chunk - 1, 2 * shape.chunk + 1]
    batch = make_batch(shape, lengths, [1] * 3)
    (decoded, decoded_lse), (extended, extended_lse) = batch.decode(), batch.extend()
    torch.testing.assert_close(decoded, extended, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded_lse, extended_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [PLAIN, Shape(32, 4, 16, window=70), *TENSOR_CORES], ids=str)
def test_decode_alone_equals_decode_in_a_batch_bitwise(shape: Shape) -> None:
    batch = make_batch(shape, [3, 2 * shape.chunk + 9, shape.chunk], [1] * 3)
    out, lse = batch.decode()
    for row in range(3):
        alone, alone_lse = batch.only(row).decode()
        assert torch.equal(alone[0], out[row])
        assert torch.equal(alone_lse[0], lse[row])


@pytest.mark.parametrize("shape", [PLAIN, Shape(32, 5, 16, window=20), *TENSOR_CORES], ids=str)
def test_extend_alone_equals_extend_in_a_batch_bitwise(shape: Shape) -> None:
    batch = make_batch(shape, [40, 1, 33, 70], [11, 1, 33, 2])
    out, lse = batch.extend()
    for row, (start, stop) in enumerate([(0, 11), (11, 12), (12, 45), (45, 47)]):
        alone, alone_lse = batch.only(row).extend(max_q_len=stop - start)
        assert torch.equal(alone, out[start:stop])
        assert torch.equal(alone_lse, lse[start:stop])


@pytest.mark.parametrize("shape", [PLAIN, Shape(32, 5, 16, window=20), *TENSOR_CORES], ids=str)
def test_chunked_prefill_equals_whole_prefill(shape: Shape) -> None:
    whole = make_batch(shape, [50], [50])
    out, _ = whole.extend()
    for start, stop in ((0, 7), (7, 40), (40, 41), (41, 50)):
        part = whole.only(0)
        part.q = whole.q[start:stop]
        part.cu_q = torch.tensor([0, stop - start], dtype=torch.int32, device=DEVICE)
        part.seq_lens = torch.tensor([stop], dtype=torch.int32, device=DEVICE)
        got = part.extend()[0]
        if ON_GPU:
            assert torch.equal(got, out[start:stop])
        else:  # numpy's matrix product depends on a row's place in the tile, in the last bit
            torch.testing.assert_close(got, out[start:stop], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [PLAIN, *TENSOR_CORES], ids=str)
def test_repeated_runs_are_bitwise_equal(shape: Shape) -> None:
    decoding = make_batch(shape, [shape.chunk + 9, 33], [1, 1])
    extending = make_batch(shape, [40, 70], [40, 3])
    for run in (decoding.decode, extending.extend):
        first = run()[0]
        assert all(torch.equal(run()[0], first) for _ in range(20 if ON_GPU else 1))


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="CUDA graphs need a CUDA device")
def test_one_cuda_graph_serves_all_lengths() -> None:
    batch = make_batch(Shape(128, 4, 16, dtype=torch.bfloat16), [2000, 700, 1], [1, 1, 1])
    lengths = batch.seq_lens.clone()
    expected = batch.decode()[0]
    out = torch.empty_like(batch.q)
    width = batch.block_table.shape[1] * 16
    workspace = torch.empty(decode_workspace_size(*batch.q.shape, width, batch.shape.chunk), device=DEVICE)
    lse = torch.empty(batch.q.shape[:2], device=DEVICE)
    arguments = (batch.q, batch.k, batch.v, batch.block_table, batch.seq_lens, out, workspace)
    batch.seq_lens.fill_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # compiled by the run above: captures cannot load modules
        paged_decode(*arguments, chunk=batch.shape.chunk, lse=lse, **batch.options)
    batch.seq_lens.copy_(lengths)
    graph.replay()
    assert torch.equal(out, expected)


def test_cascade_equals_direct_attention() -> None:
    """Three requests share 32 tokens: one pass of all their queries over those, one pass each over the rest."""
    batch = make_batch(Shape(32, 4, 16, kv_heads=2), [33, 47, 80], [1, 1, 1])
    batch.block_table[:, :2] = batch.block_table[2, :2]
    shared = batch.only(2)
    shared.q, shared.cu_q = batch.q, torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    shared.seq_lens = torch.tensor([32], dtype=torch.int32, device=DEVICE)
    own = make_batch(batch.shape, [1], [1])
    own.kv, own.q, own.cu_q = batch.kv, batch.q, batch.cu_q
    own.block_table, own.seq_lens = batch.block_table[:, 2:].contiguous(), batch.seq_lens - 32
    (prefix_out, prefix_lse), (own_out, own_lse) = shared.extend(causal=False), own.decode()
    assert_close(prefix_out, shared.expected(causal=False)[0], torch.float32)
    out, lse = torch.empty_like(own_out), torch.empty_like(own_lse)
    merge_states(prefix_out, prefix_lse, own_out, own_lse, out, lse)
    expected_out, expected_lse = batch.expected()
    assert_close(out, expected_out, torch.float32)
    assert_lse_close(lse, expected_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_merge_states_equals_reference(dtype: torch.dtype) -> None:
    out_a, out_b = (torch.randn(5, 3, 80).to(DEVICE, dtype) for _ in range(2))
    lse_a, lse_b = (torch.randn(5, 3).to(DEVICE) * 20 for _ in range(2))
    lse_a[0] = lse_b[0] = lse_b[1] = -torch.inf
    out, lse = torch.full_like(out_a, torch.nan), torch.full_like(lse_a, torch.nan)
    expected_out, expected_lse = torch.empty_like(out), torch.empty_like(lse)
    merge_states(out_a, lse_a, out_b, lse_b, out, lse)
    reference.merge_states(out_a, lse_a, out_b, lse_b, expected_out, expected_lse)
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1], out_a[1])
    assert_close(out, expected_out, dtype)
    torch.testing.assert_close(lse, expected_lse)


def test_offsets_beyond_32_bits_reach_the_right_page() -> None:
    """The second page starts past element 2**31, as in a pool of more than 4 GB."""
    stride = 2**31 + 64
    try:
        pool = torch.empty(stride + 2 * 16 * 32, dtype=torch.float16, device=DEVICE)
    except RuntimeError:
        pytest.skip("cannot reserve 4 GiB of address space")
    k, v = pool.as_strided((2, 1, 16, 32), (stride, 512, 32, 1)), pool[512:].as_strided(
        (2, 1, 16, 32), (stride, 512, 32, 1)
    )  # fmt: skip
    k[1], v[1] = torch.randn(2, 1, 16, 32).to(DEVICE, torch.float16)
    q = torch.randn(1, 4, 32).to(DEVICE, torch.float16)
    table, lengths, cu_q = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([[1]], [16], [0, 1]))
    expected, decoded, extended = (torch.empty_like(q) for _ in range(3))
    reference.paged_decode(q, k[1:], v[1:], table - 1, lengths, expected, scale=0.2)
    workspace = torch.empty(decode_workspace_size(1, 4, 32, 16), device=DEVICE)
    paged_decode(q, k, v, table, lengths, decoded, workspace, scale=0.2)
    paged_extend(q, k, v, table, cu_q, lengths, extended, scale=0.2)
    assert_close(decoded, expected.double(), torch.float16)
    assert_close(extended, expected.double(), torch.float16)


@pytest.mark.parametrize("before", [1, 35])
@pytest.mark.parametrize("shape", [PLAIN, Shape(32, 5, 16, window=20), *TENSOR_CORES], ids=str)
def test_rows_of_no_sequence_keep_what_they_have(shape: Shape, before: int) -> None:
    """A step holds decodes before the chunks, and padding behind them: a sequence without context gives zeros."""
    batch = make_batch(shape, [40, 33, 0], [17, 9, 5])
    expected, _ = batch.extend()
    rows = batch.q.shape[0]
    noise = torch.randn(before + rows + 4, *batch.q.shape[1:]).to(DEVICE, batch.q.dtype)
    noise[before : before + rows] = batch.q
    batch.q, batch.cu_q = noise, batch.cu_q + before
    got, _ = batch.extend()
    assert torch.equal(got[before : before + rows], expected)
    assert not expected[26:].any()
    assert got[:before].isnan().all()
    assert got[before + rows :].isnan().all()


@pytest.mark.parametrize("shape", [PLAIN, Shape(32, 4, 16, window=70), *TENSOR_CORES], ids=str)
def test_a_decode_of_negative_length_writes_nothing(shape: Shape) -> None:
    batch = make_batch(shape, [300, 1, 0, 20], [1, 1, 1, 1])
    expected, expected_lse = batch.decode()
    batch.seq_lens[1] = batch.seq_lens[3] = -1
    got, lse = batch.decode()
    assert torch.equal(got[::2], expected[::2])
    assert torch.equal(lse[::2], expected_lse[::2])
    assert got[1::2].isnan().all()
    assert lse[1::2].isnan().all()


def test_empty_batch_launches_nothing() -> None:
    batch = make_batch(PLAIN, [5], [1])
    batch.q, batch.block_table, batch.seq_lens = batch.q[:0], batch.block_table[:0], batch.seq_lens[:0]
    batch.cu_q = batch.cu_q[:1]
    assert batch.decode()[0].shape == batch.extend()[0].shape == (0, 4 * PLAIN.kv_heads, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 4, 32, dtype=torch.float64)}, "q: dtype"),
        ({"q": torch.zeros(4, 32)}, "q: 2 axes"),
        ({"q": torch.zeros(1, 3, 32), "out": torch.zeros(1, 3, 32)}, "q: 3 heads"),
        ({"k": torch.zeros(3, 2, 8, 32)}, "v: shape"),
        ({"k": torch.zeros(3, 2, 8, 32), "v": torch.zeros(3, 2, 8, 32)}, "k: page size 8"),
        ({"k": torch.zeros(3, 2, 16, 40)}, "k: shape"),
        ({"k": torch.zeros(3, 2, 16, 64)[..., ::2]}, "k: stride 2"),
        ({"v": torch.zeros(3, 16, 2, 32).transpose(1, 2)}, "v: strides"),
        ({"block_table": torch.zeros(1, 2, dtype=torch.int64)}, "block_table: dtype"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int32)}, "seq_lens: shape"),
        ({"out": torch.zeros(1, 4, 32, dtype=torch.float16)}, "out: dtype"),
        ({"sinks": torch.zeros(3)}, "sinks: shape"),
        ({"lse": torch.zeros(1, 3)}, "lse: shape"),
        ({"window": -1}, "window: -1"),
        ({"softcap": -1.0}, "softcap: -1.0"),
        ({"scale": 0.0}, "scale: 0.0"),
    ],
)
def test_launchers_name_the_argument_that_is_wrong(change, message) -> None:
    pages = torch.zeros(2, 3, 2, 16, 32)
    arguments = {
        "q": torch.zeros(1, 4, 32),
        "k": pages[0],
        "v": pages[1],
        "block_table": torch.zeros(1, 2, dtype=torch.int32),
        "seq_lens": torch.ones(1, dtype=torch.int32),
        "out": torch.zeros(1, 4, 32),
        "scale": 1.0,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        paged_decode(**arguments, workspace=torch.zeros(4 * 33))
    with pytest.raises(ValueError, match=message):
        paged_extend(**arguments, cu_q=torch.tensor([0, 1], dtype=torch.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workspace": torch.zeros(4 * 33 - 1)}, "workspace: 131"),
        ({"workspace": torch.zeros(4 * 33, dtype=torch.float64)}, "workspace: 132 of torch.float64"),
        ({"chunk": 40}, "chunk: 40"),
        ({"q": torch.zeros(2, 4, 32), "out": torch.zeros(2, 4, 32)}, "block_table: 1 rows"),
    ],
)
def test_decode_names_the_argument_that_is_wrong(change, message) -> None:
    pages = torch.zeros(2, 3, 2, 16, 32)
    arguments = {
        "q": torch.zeros(1, 4, 32),
        "k": pages[0],
        "v": pages[1],
        "block_table": torch.zeros(1, 2, dtype=torch.int32),
        "seq_lens": torch.ones(1, dtype=torch.int32),
        "out": torch.zeros(1, 4, 32),
        "workspace": torch.zeros(4 * 33),
        "scale": 1.0,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        paged_decode(**arguments)


def test_a_window_needs_a_causal_mask() -> None:
    batch = make_batch(Shape(32, 4, 16, window=3), [5], [1])
    with pytest.raises(ValueError, match="window: 3"):
        batch.extend(causal=False)
