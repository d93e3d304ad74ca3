"""Paged decode attention: one new token a sequence reads all its keys and values from pages.

The context is split into chunks of a fixed number of tokens (flash-decoding, split by length and never by batch), so a
sequence's result does not depend on what else is in the batch. A sequence within one chunk is finished by the first
kernel; longer ones leave a partial state per chunk, which the second kernel merges in chunk order, without atomics.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.heuristics import DECODE, Tile, lookup
from octavo_kernels.launch import architecture, check_attention, check_options, must_upcast
from octavo_kernels.page_tiles import LN2, LOG2E, finish_softmax, load_tile, raw_scores, softmax_step, token_offsets


def decode_workspace_size(batch: int, num_heads: int, head_dim: int, max_len: int, chunk: int = 512) -> int:
    """Return how many fp32 elements `paged_decode` needs as its workspace.

    Args:
        batch: sequences.
        num_heads: query heads.
        head_dim: elements a head.
        max_len: tokens that the block table has room for, max_pages * PAGE.
        chunk: tokens a chunk.
    """
    return batch * num_heads * -(-max_len // chunk) * (head_dim + 1)


def paged_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    chunk: int = 512,
    lse: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> None:
    """Attend with one query token a sequence.

    The grids depend on shapes only (the width of the block table, not the lengths), so a CUDA graph can hold them.
    Programs of chunks that a sequence does not reach return at once, but they are not free: pass a view of the table's
    first columns where lengths are known to be short.

    Args:
        q: [B, Hq, D] fp32, fp16 or bf16; D a multiple of 16.
        k: [P, Hk, PAGE, D] view of the pool, dtype of q; PAGE 16, 32 or 64.
        v: the same for values, with the same strides.
        block_table: [B, max_pages] int32; entries before the window may hold anything.
        seq_lens: [B] int32, tokens in the pages, the query's own included; 0 gives zeros and an lse of -inf.
        out: [B, Hq, D] dtype of q, written.
        workspace: fp32, at least `decode_workspace_size` elements; its contents do not matter.
        scale: factor of the scores.
        window: newest tokens that a query sees, itself included; 0 means all.
        softcap: scores become softcap * tanh(score / softcap); 0 means off.
        sinks: [Hq] fp32, one more score a head that takes part in the softmax and has no value.
        chunk: tokens a program reads; a multiple of 64 suits every tile.
        lse: [B, Hq] fp32, written if given: natural logarithm of the softmax denominator, the sink included.
        tile: launch parameters, by default those of `heuristics.DECODE`.
    """
    check_attention(q, k, v, block_table, seq_lens, out, sinks, lse)
    check_options(scale, window, softcap)
    batch, num_heads, head_dim = q.shape
    num_kv_heads, page_size = k.shape[1], k.shape[2]
    if block_table.shape[0] != batch:
        raise ValueError(f"block_table: {block_table.shape[0]} rows, expected {batch}, one per query")
    group, d_pad = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    tile = tile or lookup(DECODE, architecture(), d_pad, group, q.dtype, page_size)
    if chunk <= 0 or chunk % tile.tokens != 0:
        raise ValueError(f"chunk: {chunk}, expected a multiple of {tile.tokens}, the tokens of a tile")
    max_len = block_table.shape[1] * page_size
    size = decode_workspace_size(batch, num_heads, head_dim, max_len, chunk)
    if workspace.dtype != torch.float32 or not workspace.is_contiguous() or workspace.numel() < size:
        raise ValueError(
            f"workspace: {workspace.numel()} of {workspace.dtype}, expected {size} contiguous fp32 elements"
        )
    if workspace.device != q.device:
        raise ValueError(f"workspace: device {workspace.device}, expected {q.device}")
    if batch == 0:
        return
    num_chunks = triton.cdiv(max_len, chunk)
    lse_out = lse if lse is not None else workspace  # an address that is never written
    _decode_chunks[num_chunks, num_kv_heads, batch](
        q,
        k,
        v,
        block_table,
        seq_lens,
        sinks,
        out,
        lse_out,
        workspace,
        scale,
        softcap,
        num_chunks,
        batch,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        k.stride(2),
        block_table.stride(0),
        out.stride(0),
        out.stride(1),
        GROUP=group,
        D=head_dim,
        D_PAD=d_pad,
        PAGE=page_size,
        CHUNK=chunk,
        WINDOW=window,
        HAS_SOFTCAP=softcap > 0,
        HAS_SINKS=sinks is not None,
        HAS_LSE=lse is not None,
        UPCAST=must_upcast(q.dtype),
        ROWS=max(tile.rows, triton.next_power_of_2(group)),
        TOKENS=tile.tokens,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if num_chunks > 1:
        _merge_chunks[num_heads, batch](
            workspace,
            seq_lens,
            sinks,
            out,
            lse_out,
            num_chunks,
            batch,
            out.stride(0),
            out.stride(1),
            D=head_dim,
            D_PAD=d_pad,
            CHUNK=chunk,
            WINDOW=window,
            HAS_SINKS=sinks is not None,
            HAS_LSE=lse is not None,
            num_warps=1 if d_pad <= 128 else 2,
        )


@triton.jit
def _visible_chunks(length, CHUNK: tl.constexpr, WINDOW: tl.constexpr):
    """Return (first visible token, first chunk, chunk past the last) of a sequence of this length."""
    start = 0
    if WINDOW > 0:
        start = tl.maximum(length - WINDOW, 0)
    return start, start // CHUNK, tl.cdiv(length, CHUNK)


@triton.jit(do_not_specialize=["num_chunks", "batch"])
def _decode_chunks(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    workspace_ptr,
    scale,
    softcap,
    num_chunks,
    batch,
    stride_q_row,
    stride_q_head,
    stride_page,
    stride_kv_head,
    stride_token,
    stride_table,
    stride_out_row,
    stride_out_head,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """softmax(scale * q k^T) v over one chunk of one sequence, for the GROUP query heads of one key/value head.

    Grid (chunk, kv head, sequence). Writes the final output if the sequence has one visible chunk, else a partial
    output (normalised) and its lse to the workspace: out [B, Hq, chunks, D], then lse [B, Hq, chunks], all fp32.
    """
    chunk, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_heads = tl.num_programs(1) * GROUP
    length = tl.load(seq_lens_ptr + seq)
    start, first_chunk, stop_chunk = _visible_chunks(length, CHUNK, WINDOW)
    alone = stop_chunk - first_chunk <= 1
    # An empty sequence has no chunk at all: program 0 writes its zeros.
    if (chunk >= first_chunk) & (chunk < tl.maximum(stop_chunk, 1)):
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, D_PAD)
        heads = kv_head * GROUP + rows
        cells = (rows < GROUP)[:, None] & (dims < D)[None, :]
        q_offsets = seq.to(tl.int64) * stride_q_row + heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask=cells, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D_PAD], tl.float32)
        head_base = kv_head.to(tl.int64) * stride_kv_head
        table = table_ptr + seq.to(tl.int64) * stride_table
        stop = tl.minimum(length, (chunk + 1) * CHUNK)
        # Tiles stay on multiples of TOKENS whatever the window, so the order of sums is the same for all sequences.
        begin = tl.maximum(start // TOKENS * TOKENS, chunk * CHUNK)
        for tile_start in tl.range(begin, stop, TOKENS):
            tokens = tile_start + tl.arange(0, TOKENS)
            offsets = token_offsets(table, tile_start, stop, stride_page, stride_token, TOKENS, PAGE, MASKED=True)
            k = load_tile(k_ptr + head_base, offsets, tokens, start, stop, D, D_PAD, True, UPCAST)
            scores, factor = raw_scores(q, k, scale, softcap, HAS_SOFTCAP)
            scores = tl.where(((tokens >= start) & (tokens < stop))[None, :], scores, float("-inf"))
            v = load_tile(v_ptr + head_base, offsets, tokens, start, stop, D, D_PAD, True, UPCAST)
            top, total, acc = softmax_step(scores, factor, v, top, total, acc)

        sink = tl.zeros([ROWS], tl.float32)
        row = seq.to(tl.int64) * num_heads + heads
        if alone:
            if HAS_SINKS:
                sink = tl.load(sinks_ptr + heads, mask=rows < GROUP, other=0.0)
                if length == 0:
                    sink += float("-inf")
            out, lse = finish_softmax(top, total, acc, sink, HAS_SINKS)
            out_offsets = seq.to(tl.int64) * stride_out_row + heads[:, None] * stride_out_head + dims[None, :]
            tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=cells)
            if HAS_LSE:
                tl.store(lse_ptr + row, lse, mask=rows < GROUP)
        else:
            out, lse = finish_softmax(top, total, acc, sink, False)
            partial = row * num_chunks + chunk
            tl.store(workspace_ptr + partial[:, None] * D + dims[None, :], out, mask=cells)
            lse_base = batch.to(tl.int64) * num_heads * num_chunks * D
            tl.store(workspace_ptr + lse_base + partial, lse, mask=rows < GROUP)


@triton.jit(do_not_specialize=["num_chunks", "batch"])
def _merge_chunks(
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
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Compute out = sum_c exp(lse_c - lse) out_c over the visible chunks c of one sequence and head, in chunk order.

    Grid (head, sequence). Sequences with one visible chunk are already written and left alone.
    """
    head, seq = tl.program_id(0), tl.program_id(1)
    length = tl.load(seq_lens_ptr + seq)
    _, first_chunk, stop_chunk = _visible_chunks(length, CHUNK, WINDOW)
    if stop_chunk - first_chunk > 1:
        row = seq.to(tl.int64) * tl.num_programs(0) + head
        dims = tl.arange(0, D_PAD)
        lse_ptrs = workspace_ptr + batch.to(tl.int64) * tl.num_programs(0) * num_chunks * D + row * num_chunks
        top = tl.full([], float("-inf"), tl.float32)
        total = tl.zeros([], tl.float32)
        if HAS_SINKS:
            top = tl.load(sinks_ptr + head) * LOG2E
            total += 1.0
        acc = tl.zeros([D_PAD], tl.float32)
        for chunk in tl.range(first_chunk, stop_chunk):
            lse = tl.load(lse_ptrs + chunk) * LOG2E
            out = tl.load(workspace_ptr + (row * num_chunks + chunk) * D + dims, mask=dims < D, other=0.0)
            new_top = tl.maximum(top, lse)  # finite: every visible chunk holds a visible token
            shrink = tl.exp2(top - new_top)
            weight = tl.exp2(lse - new_top)
            acc = acc * shrink + out * weight
            total = total * shrink + weight
            top = new_top
        tl.store(
            out_ptr + seq.to(tl.int64) * stride_out_row + head * stride_out_head + dims,
            (acc / total).to(out_ptr.dtype.element_ty),
            mask=dims < D,
        )
        if HAS_LSE:
            tl.store(lse_ptr + row, (top + tl.log2(total)) * LN2)
