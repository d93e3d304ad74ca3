"""Paged extend attention: the newest tokens of each sequence attend to all of it, prefix and causal part alike.

Batches are ragged: prefill, chunks over a cached prefix and single-token decodes mix in one launch. The keys and values
of the new tokens are already in pages. The query heads that share a key/value head are packed into the rows of a tile
(FlashAttention-2, arXiv 2307.08691, with grouped heads), and the loop over keys is an unmasked body with masked ends.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import check_attention, check_options, check_vector
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.extend_hopper import fills_device, launch_hopper, supports
from octavo_kernels.heuristics import CHUNK, EXTEND, EXTEND_EXACT, Tile, lookup
from octavo_kernels.launch import architecture, launch, must_upcast
from octavo_kernels.page_tiles import (
    find_sequence,
    finish_softmax,
    fold_state,
    load_tile,
    raw_scores,
    softmax_weights,
    token_offsets,
)


def paged_extend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    cu_q: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    max_q_len: int | None = None,
    causal: bool = True,
    exact: bool = False,
    chunk: int = CHUNK,
    tile: Tile | None = None,
) -> None:
    """Attend causally with the newest q_len tokens of each sequence.

    Lengths are read on the device only. Without `max_q_len` the grid covers every split of T rows into B sequences;
    the hint can make it smaller, never the result different.

    Args:
        q: [T, Hq, D] fp32, fp16 or bf16, sequences one after the other; D a multiple of 16. Rows before cu_q[0] and
            from cu_q[B] on belong to none of them, and `out` keeps what it has there.
        k: [P, Hk, PAGE, D] view of the pool, dtype of q; PAGE 16, 32 or 64.
        v: the same for values, with the same strides.
        block_table: [B, max_pages] int32; entries before the window may hold anything.
        cu_q: [B + 1] int32, the first row of each sequence, and the end of the last one.
        seq_lens: [B] int32, tokens in the pages, the new ones included; 0 gives zeros and an lse of -inf.
        out: [T, Hq, D] dtype of q, written.
        workspace: not needed yet.
        scale: factor of the scores.
        window: newest tokens that a query sees, itself included; 0 means all.
        softcap: scores become softcap * tanh(score / softcap); 0 means off.
        sinks: [Hq] fp32, one more score a head that takes part in the softmax and has no value.
        lse: [T, Hq] fp32, written if given: natural logarithm of the softmax denominator, the sink included.
        max_q_len: an upper bound of the query lengths.
        causal: if false, every query sees all keys: a prefix that the queries of many requests share. No window then.
        exact: give the very bits that `paged_decode` with `exact` and the same chunk gives for the same query: each
            chunk of keys becomes a state of its own, folded in order.
        chunk: tokens a chunk if `exact`, a multiple of the tile's.
        tile: launch parameters, by default those of `heuristics.EXTEND` or `EXTEND_EXACT`.
    """
    del workspace
    check_attention(q, k, v, block_table, seq_lens, out, sinks, lse)
    check_options(scale, window, softcap)
    if window > 0 and not causal:
        raise ValueError(f"window: {window}, expected 0 without a causal mask")
    batch = block_table.shape[0]
    check_vector("cu_q", cu_q, batch + 1, torch.int32, q.device)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, page_size = k.shape[1], k.shape[2]
    if num_tokens == 0 or batch == 0:
        return
    group, d_pad = num_heads // num_kv_heads, max(16, next_power_of_2(head_dim))
    is_plain = causal and window == 0 and softcap == 0 and sinks is None
    is_hopper = tile is None and supports(q, k, v, is_plain=is_plain) and fills_device(q)
    tile = tile or lookup(EXTEND_EXACT if exact else EXTEND, architecture(), d_pad, group, q.dtype, page_size)
    if exact and (chunk <= 0 or chunk % tile.tokens != 0):
        raise ValueError(f"chunk: {chunk}, expected a multiple of {tile.tokens}, the tokens of a tile")
    if is_hopper:
        launch_hopper(
            q, k, v, block_table, cu_q, seq_lens, out, lse,
            scale=scale, max_q_len=max_q_len, chunk=chunk if exact else 0,
        )  # fmt: skip
        return
    rows = max(tile.rows, next_power_of_2(group))
    block_tokens = rows // group  # query tokens a program: rows beyond block_tokens * group stay idle
    num_blocks = num_tokens // block_tokens + batch
    per_sequence = 0
    if max_q_len is not None and cdiv(max_q_len, block_tokens) * batch < num_blocks:
        per_sequence = cdiv(max_q_len, block_tokens)
        num_blocks = per_sequence * batch
    if num_blocks == 0:
        return
    launch(
        _extend_blocks,
        (num_kv_heads, num_blocks),
        q,
        k,
        v,
        block_table,
        cu_q,
        seq_lens,
        sinks,
        out,
        lse if lse is not None else out,  # an address that is never written
        scale,
        softcap,
        1.0,
        batch,
        per_sequence,
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
        WINDOW=window,
        CAUSAL=causal,
        HAS_SOFTCAP=softcap > 0,
        HAS_SINKS=sinks is not None,
        HAS_LSE=lse is not None,
        UPCAST=must_upcast(q.dtype),
        ROWS=rows,
        TOKENS=tile.tokens,
        CHUNK=chunk if exact else 0,
        STAGGER=tile.stagger,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit
def _extend_tile(
    tile_start,
    top,
    total,
    acc,
    all_top,
    all_total,
    all_acc,
    one,
    q,
    query_pos,
    k_ptr,
    v_ptr,
    table,
    start,
    stop,
    scale,
    softcap,
    stride_page,
    stride_token,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    TOKENS: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Fold the keys tile_start .. tile_start + TOKENS - 1 into the running softmax of the rows that see them.

    With chunks, (top, total, acc) is the state of the chunk so far, and all_* that of all chunks before it.
    """
    tokens = tile_start + tl.arange(0, TOKENS)
    offsets = token_offsets(table, tile_start, stop, stride_page, stride_token, TOKENS, PAGE, MASKED)
    k = load_tile(k_ptr, offsets, tokens, start, stop, D, D_PAD, MASKED, UPCAST)
    scores, factor = raw_scores(q, k, scale, softcap, HAS_SOFTCAP)
    if CHUNK > 0:  # noqa: SIM102 - the compiler knows this one
        if tile_start % CHUNK == 0:
            all_top, all_total, all_acc = fold_state(all_top, all_total, all_acc, top, total, acc)
            top = tl.full(top.shape, float("-inf"), tl.float32)
            total = tl.zeros_like(total)
            acc = tl.zeros_like(acc)
            # Changes nothing, but ties the branch to the scores: hoisted above them, it would wait for the product of
            # the tile before in each tile instead of once a chunk.
            scores = scores * one
    if MASKED:
        visible = tokens[None, :] <= query_pos[:, None]
        if WINDOW > 0:
            visible &= tokens[None, :] > query_pos[:, None] - WINDOW
        scores = tl.where(visible, scores, float("-inf"))
    top, total, weights, shrink = softmax_weights(scores, factor, top, total)
    v = load_tile(v_ptr, offsets, tokens, start, stop, D, D_PAD, MASKED, UPCAST)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return top, total, acc, all_top, all_total, all_acc


@triton.jit(do_not_specialize=["batch", "per_sequence"])
def _extend_blocks(  # noqa: C901, PLR0912, PLR0915 - one program, read from top to bottom
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    cu_q_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    lse_ptr,
    scale,
    softcap,
    one,
    batch,
    per_sequence,
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
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_LSE: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGGER: tl.constexpr,
):
    """softmax(scale * q k^T + causal mask) v for ROWS // GROUP query tokens of one sequence and one key/value head.

    Grid (kv head, query block). Row r of the tile is token r // GROUP, head r % GROUP of the group. Blocks are numbered
    so that a sequence's first block follows from cu_q alone; numbers that belong to no block return at once.
    """
    BLOCK_TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    # Late blocks of a sequence see the most keys: they start first, so that short ones fill the last wave.
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    if per_sequence > 0:
        seq = block // per_sequence
        first_token = block % per_sequence * BLOCK_TOKENS
        q_start = tl.load(cu_q_ptr + seq)
    else:
        seq = find_sequence(cu_q_ptr, block, batch, BLOCK_TOKENS)
        q_start = tl.load(cu_q_ptr + seq)
        first_token = (block - (q_start // BLOCK_TOKENS + seq)) * BLOCK_TOKENS
    q_len = tl.load(cu_q_ptr + seq + 1) - q_start
    length = tl.load(seq_lens_ptr + seq)
    if (first_token >= 0) & (first_token < q_len):
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, D_PAD)
        token = first_token + rows // GROUP
        heads = kv_head * GROUP + rows % GROUP
        present = (rows < BLOCK_TOKENS * GROUP) & (token < q_len)
        cells = present[:, None] & (dims < D)[None, :]
        row = (q_start + token).to(tl.int64)
        q_offsets = row[:, None] * stride_q_row + heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask=cells, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, D_PAD], tl.float32)
        if CAUSAL:
            query_pos = length - q_len + token
            first_pos = length - q_len + first_token
            stop = tl.minimum(length, first_pos + BLOCK_TOKENS)
        else:
            query_pos = length - 1 + rows * 0
            first_pos = length - 1
            stop = length
        start = 0
        if WINDOW > 0:
            start = tl.maximum(first_pos - WINDOW + 1, 0)
        k_base = k_ptr + kv_head.to(tl.int64) * stride_kv_head
        v_base = v_ptr + kv_head.to(tl.int64) * stride_kv_head
        table = table_ptr + seq.to(tl.int64) * stride_table
        # Tiles stay on multiples of TOKENS, so chunked prefill sums in the same order as a whole one.
        begin = start // TOKENS * TOKENS
        # Keys that every row sees need no mask: from the last row's window to the first row's position.
        clear_start = begin
        if WINDOW > 0:
            clear_start = tl.maximum(tl.cdiv(stop - WINDOW, TOKENS) * TOKENS, begin)
        clear_stop = tl.maximum(tl.maximum(first_pos + 1, 0) // TOKENS * TOKENS, clear_start)
        all_top, all_total, all_acc = top, total, acc
        if WINDOW > 0:
            for tile_start in tl.range(begin, tl.minimum(clear_start, stop), TOKENS):
                top, total, acc, all_top, all_total, all_acc = _extend_tile(
                    tile_start, top, total, acc, all_top, all_total, all_acc, one, q, query_pos, k_base, v_base, table,
                    start, stop, scale, softcap, stride_page, stride_token,
                    D, D_PAD, PAGE, WINDOW, HAS_SOFTCAP, UPCAST, TOKENS, CHUNK, MASKED=True,
                )  # fmt: skip
        if STAGGER:
            # Staggered: the product with the values of a tile runs beside the softmax of the next one (as in
            # FlashAttention-3, arXiv 2407.08608). The weights travel as plain bits, or they would pass through memory.
            BITS: tl.constexpr = tl.int32 if q.dtype == tl.float32 else tl.int16
            weights = tl.zeros([ROWS, TOKENS], BITS)
            shrink = tl.full([ROWS], 1.0, tl.float32)
            old_top, old_total = top, total
            for tile_start in tl.range(clear_start, clear_stop, TOKENS):
                tokens = tile_start + tl.arange(0, TOKENS)
                offsets = token_offsets(table, tile_start, stop, stride_page, stride_token, TOKENS, PAGE, MASKED=False)
                k = load_tile(k_base, offsets, tokens, start, stop, D, D_PAD, False, UPCAST)
                scores, factor = raw_scores(q, k, scale, softcap, HAS_SOFTCAP)
                before = tl.maximum(tile_start - TOKENS, clear_start)
                if CHUNK > 0:
                    if (before % CHUNK == 0) & (tile_start > clear_start):
                        all_top, all_total, all_acc = fold_state(all_top, all_total, all_acc, old_top, old_total, acc)
                        acc = tl.zeros_like(acc)
                        # Changes nothing, but ties the branch to the scores: hoisted above them, it would wait for the
                        # product below in each tile instead of once a chunk.
                        scores = scores * one
                    fresh = tile_start % CHUNK == 0
                    old_top, old_total = tl.where(fresh, top, old_top), tl.where(fresh, total, old_total)
                    top, total = tl.where(fresh, float("-inf"), top), tl.where(fresh, 0.0, total)
                offsets = token_offsets(table, before, stop, stride_page, stride_token, TOKENS, PAGE, MASKED=False)
                v = load_tile(v_base, offsets, tokens, start, stop, D, D_PAD, False, UPCAST)
                acc = tl.dot(weights.to(q.dtype, bitcast=True), v, acc * shrink[:, None], input_precision="ieee")
                top, total, weights32, shrink = softmax_weights(scores, factor, top, total)
                weights = weights32.to(q.dtype).to(BITS, bitcast=True)
            last = tl.maximum(clear_stop - TOKENS, begin)  # without such tiles: weights of zero
            if CHUNK > 0:  # noqa: SIM102 - the compiler knows this one
                if (last % CHUNK == 0) & (clear_start < clear_stop):
                    all_top, all_total, all_acc = fold_state(all_top, all_total, all_acc, old_top, old_total, acc)
                    acc = tl.zeros_like(acc)
            offsets = token_offsets(table, last, stop, stride_page, stride_token, TOKENS, PAGE, MASKED=True)
            v = load_tile(v_base, offsets, last + tl.arange(0, TOKENS), start, stop, D, D_PAD, True, UPCAST)
            acc = tl.dot(weights.to(q.dtype, bitcast=True), v, acc * shrink[:, None], input_precision="ieee")
        else:
            for tile_start in tl.range(clear_start, clear_stop, TOKENS):
                top, total, acc, all_top, all_total, all_acc = _extend_tile(
                    tile_start, top, total, acc, all_top, all_total, all_acc, one, q, query_pos, k_base, v_base, table, start, stop, scale, softcap, stride_page, stride_token,
                    D, D_PAD, PAGE, WINDOW, HAS_SOFTCAP, UPCAST, TOKENS, CHUNK, MASKED=False,
                )  # fmt: skip
        for tile_start in tl.range(clear_stop, stop, TOKENS):
            top, total, acc, all_top, all_total, all_acc = _extend_tile(
                tile_start, top, total, acc, all_top, all_total, all_acc, one, q, query_pos, k_base, v_base, table,
                start, stop, scale, softcap, stride_page, stride_token,
                D, D_PAD, PAGE, WINDOW, HAS_SOFTCAP, UPCAST, TOKENS, CHUNK, MASKED=True,
            )  # fmt: skip
        if CHUNK > 0:
            top, total, acc = fold_state(all_top, all_total, all_acc, top, total, acc)

        sink = tl.zeros([ROWS], tl.float32)
        if HAS_SINKS:
            sink = tl.load(sinks_ptr + heads, mask=present, other=0.0)
            if length == 0:
                sink += float("-inf")
        out, lse = finish_softmax(top, total, acc, sink, HAS_SINKS)
        out_offsets = row[:, None] * stride_out_row + heads[:, None] * stride_out_head + dims[None, :]
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=cells)
        if HAS_LSE:
            num_heads = tl.num_programs(0) * GROUP
            tl.store(lse_ptr + row * num_heads + heads, lse, mask=present)
