"""States of chunks of keys in the workspace, and folding them into a result: the second half of split attention.

A row of the workspace is one query head of one sequence. The layout is acc [B, Hq, chunks, D], then top [B, Hq, chunks],
then total [B, Hq, chunks], all fp32; chunks lie at fixed places of the context and are folded in that order.
"""
# ruff: noqa: ANN201 - device functions return values of the kernel language.

import triton
import triton.language as tl

from octavo_kernels.overlap import wait_for_previous
from octavo_kernels.page_tiles import finish_softmax, fold_state


@triton.jit
def visible_chunks(length, CHUNK: tl.constexpr, WINDOW: tl.constexpr):
    """Return (first visible token, first chunk, chunk past the last) of a sequence of this length."""
    start = 0
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0)
    return start, start // CHUNK, tl.cdiv(length, CHUNK)


@triton.jit
def merge_chunk_states(
    workspace_ptr,
    rows,
    present,
    dims,
    first_chunk,
    stop_chunk,
    num_chunks,
    num_rows,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Fold the states of the chunks first_chunk .. stop_chunk - 1 in order, for the workspace rows `rows` [ROWS]."""
    UNROLL: tl.constexpr = 4  # loads of that many chunks are in flight
    cells = present[:, None] & (dims < D)[None, :]
    top_ptr = workspace_ptr + num_rows.to(tl.int64) * num_chunks * D
    total_ptr = top_ptr + num_rows.to(tl.int64) * num_chunks
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    for chunk_block in tl.range(first_chunk, stop_chunk, UNROLL):
        for step in tl.static_range(UNROLL):
            chunk = chunk_block + step
            there = present & (chunk < stop_chunk)
            state = rows * num_chunks + chunk
            chunk_top = tl.load(top_ptr + state, mask=there, other=float("-inf"), cache_modifier=".cg")
            chunk_total = tl.load(total_ptr + state, mask=there, other=0.0, cache_modifier=".cg")
            chunk_acc = tl.load(
                workspace_ptr + state[:, None] * D + dims[None, :],
                mask=cells & (chunk < stop_chunk),
                other=0.0,
                cache_modifier=".cg",
            )
            top, total, acc = fold_state(top, total, acc, chunk_top, chunk_total, chunk_acc)
    return top, total, acc


@triton.jit
def write_merged(
    seq,
    heads,
    present,
    num_heads,
    first_chunk,
    stop_chunk,
    num_chunks,
    num_rows,
    workspace_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    stride_out_row,
    stride_out_head,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Fold the states of the chunks of one sequence for some heads [ROWS], finish the softmax, write the result."""
    dims = tl.arange(0, D_PAD)
    rows = seq.to(tl.int64) * num_heads + heads
    top, total, acc = merge_chunk_states(
        workspace_ptr, rows, present, dims, first_chunk, stop_chunk, num_chunks, num_rows, D, D_PAD, ROWS
    )
    sink = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + heads, mask=present, other=0.0)
    out, lse = finish_softmax(top, total, acc, sink, HAS_SINKS)
    offsets = seq.to(tl.int64) * stride_out_row + heads[:, None] * stride_out_head + dims[None, :]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=present[:, None] & (dims < D)[None, :])
    if HAS_LSE:
        tl.store(lse_ptr + rows, lse, mask=present)


@triton.jit(do_not_specialize=["num_chunks", "batch"])
def merge_chunks(
    workspace_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    num_chunks,
    batch,
    stride_out_row,
    stride_out_head,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Fold the states of the visible chunks of one sequence and head, in chunk order, and finish the softmax.

    Grid (head, sequence). Sequences of up to SPAN visible chunks are already written and left alone.
    """
    head, seq = tl.program_id(0), tl.program_id(1)
    wait_for_previous(EARLY)
    length = tl.load(seq_lens_ptr + seq)
    _, first_chunk, stop_chunk = visible_chunks(length, CHUNK, WINDOW)
    if stop_chunk - first_chunk > SPAN:
        one = tl.arange(0, 1)
        write_merged(
            seq, head + one, one == 0, tl.num_programs(0), first_chunk, stop_chunk, num_chunks,
            batch * tl.num_programs(0), workspace_ptr, sinks_ptr, out_ptr, lse_ptr, stride_out_row, stride_out_head,
            D, D_PAD, 1, HAS_SINKS, HAS_LSE,
        )  # fmt: skip
