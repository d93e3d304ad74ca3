"""Device code of decode attention: a chunk of a sequence's context, or of one that several sequences share.

Which programs there are, and what the workspace holds: see `decode_attention`.
"""

import triton
import triton.language as tl

from octavo_kernels.chunk_states import visible_chunks, write_merged
from octavo_kernels.overlap import wait_for_previous
from octavo_kernels.page_tiles import finish_softmax, fold_state, load_tile, raw_scores, softmax_weights, token_offsets


@triton.jit
def _attend_chunk(
    q,
    k_ptr,
    v_ptr,
    table,
    begin,
    start,
    stop,
    scale,
    softcap,
    stride_page,
    stride_token,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    FOLDED: tl.constexpr,
):
    """Return the state (top, total, acc) of all rows of q over the keys start .. stop - 1, in tiles from `begin` on.

    With FOLDED > 0 each FOLDED tokens of the context become a state of their own, folded in order.
    """
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_PAD], tl.float32)
    all_top, all_total, all_acc = top, total, acc
    for tile_start in tl.range(begin, stop, TOKENS):
        tokens = tile_start + tl.arange(0, TOKENS)
        offsets = token_offsets(table, tile_start, stop, stride_page, stride_token, TOKENS, PAGE, MASKED=True)
        k = load_tile(k_ptr, offsets, tokens, start, stop, D, D_PAD, True, UPCAST)
        scores, factor = raw_scores(q, k, scale, softcap, HAS_SOFTCAP)
        if FOLDED > 0:  # noqa: SIM102 - the compiler knows this one
            if tile_start % FOLDED == 0:
                all_top, all_total, all_acc = fold_state(all_top, all_total, all_acc, top, total, acc)
                top = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                acc = tl.zeros([ROWS, D_PAD], tl.float32)
        scores = tl.where(((tokens >= start) & (tokens < stop))[None, :], scores, float("-inf"))
        v = load_tile(v_ptr, offsets, tokens, start, stop, D, D_PAD, True, UPCAST)
        top, total, weights, shrink = softmax_weights(scores, factor, top, total)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    if FOLDED > 0:
        top, total, acc = fold_state(all_top, all_total, all_acc, top, total, acc)
    return top, total, acc


@triton.jit
def _decode_item(  # noqa: C901, PLR0915 - one item, read from top to bottom
    seq,
    kv_head,
    chunk,
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    seq_lens_ptr,
    members_ptr,
    tickets_ptr,
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
    KV_HEADS: tl.constexpr,
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
    MEMBERS: tl.constexpr,
    TICKETS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """One chunk of one sequence, or (seq < 0) the chunk that the sequences of shared tile -1 - seq have in common.

    With SPAN > 1 the first chunk of a sequence of up to SPAN visible chunks stands for all of them.
    """
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    heads = kv_head * GROUP + rows % GROUP
    member = tl.where(rows < GROUP, seq, -1)
    if MEMBERS > 0:  # noqa: SIM102 - the compiler knows this one
        if seq < 0:
            tile_members = members_ptr + (-1 - seq) * MEMBERS
            member = tl.load(tile_members + rows // GROUP, mask=rows < MEMBERS * GROUP, other=-1)
            seq = tl.load(tile_members)
    present = member >= 0
    length = tl.load(seq_lens_ptr + seq)
    start, first_chunk, stop_chunk = visible_chunks(length, CHUNK, WINDOW)
    whole = stop_chunk - first_chunk <= SPAN
    # An empty sequence has no chunk at all: program 0 writes its zeros.
    if (length >= 0) & (chunk >= first_chunk) & (chunk < tl.where(whole, first_chunk + 1, stop_chunk)):
        cells = present[:, None] & (dims < D)[None, :]
        q_offsets = member.to(tl.int64)[:, None] * stride_q_row + heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptr + q_offsets, mask=cells, other=0.0)
        if UPCAST:
            q = q.to(tl.float32)
        head_base = tl.cast(kv_head, tl.int64) * stride_kv_head
        table = table_ptr + seq.to(tl.int64) * stride_table
        stop = tl.minimum(length, tl.where(whole, stop_chunk, chunk + 1) * CHUNK)
        # Tiles stay on multiples of TOKENS whatever the window, so the order of sums is the same for all sequences.
        begin = tl.maximum(start // TOKENS * TOKENS, chunk * CHUNK)
        top, total, acc = _attend_chunk(
            q, k_ptr + head_base, v_ptr + head_base, table, begin, start, stop, scale, softcap, stride_page,
            stride_token, D, D_PAD, PAGE, HAS_SOFTCAP, UPCAST, ROWS, TOKENS, CHUNK if SPAN > 1 else 0,
        )  # fmt: skip
        row = member.to(tl.int64) * (KV_HEADS * GROUP) + heads
        if whole:
            sink = tl.zeros([ROWS], tl.float32)
            if HAS_SINKS:
                sink = tl.load(sinks_ptr + heads, mask=present, other=0.0)
                if length == 0:
                    sink += float("-inf")
            out, lse = finish_softmax(top, total, acc, sink, HAS_SINKS)
            out_offsets = seq.to(tl.int64) * stride_out_row + heads[:, None] * stride_out_head + dims[None, :]
            tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=cells)
            if HAS_LSE:
                tl.store(lse_ptr + row, lse, mask=present)
        else:
            num_rows = batch.to(tl.int64) * (KV_HEADS * GROUP)
            state = row * num_chunks + chunk
            tops = workspace_ptr + num_rows * num_chunks * D
            tl.store(workspace_ptr + state[:, None] * D + dims[None, :], acc, mask=cells)
            tl.store(tops + state, top, mask=present)
            tl.store(tops + num_rows * num_chunks + state, total, mask=present)
            if TICKETS:
                # Whoever finishes the last chunk of a sequence folds all of them, in order.
                tl.debug_barrier()
                ticket = tickets_ptr + seq * KV_HEADS + kv_head
                if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == stop_chunk - first_chunk - 1:
                    tl.store(ticket, 0)
                    few: tl.constexpr = triton.next_power_of_2(GROUP)
                    few_heads = tl.arange(0, few)
                    write_merged(
                        seq, kv_head * GROUP + few_heads, few_heads < GROUP, KV_HEADS * GROUP, first_chunk, stop_chunk,
                        num_chunks, num_rows, workspace_ptr, sinks_ptr, out_ptr, lse_ptr, stride_out_row,
                        stride_out_head, D, D_PAD, few, HAS_SINKS, HAS_LSE,
                    )  # fmt: skip


@triton.jit(do_not_specialize=["num_chunks", "batch"])
def _decode_chunks(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    seq_lens_ptr,
    work_ptr,
    members_ptr,
    tickets_ptr,
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
    KV_HEADS: tl.constexpr,
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
    LISTED: tl.constexpr,
    MEMBERS: tl.constexpr,
    TICKETS: tl.constexpr,
    SPAN: tl.constexpr,
    EARLY: tl.constexpr,
):
    """softmax(scale * q k^T) v over chunks of sequences, for the GROUP query heads of one key/value head.

    Grid (chunk, kv head, sequence); or, with a work list (LISTED), any number of programs that take items of the list
    in turn. Writes the final output if one program reads all visible chunks of the sequence, else a state to the workspace:
    acc [B, Hq, chunks, D], top [B, Hq, chunks], total [B, Hq, chunks], all fp32.
    """
    wait_for_previous(EARLY)
    if LISTED:
        stop_item = tl.load(work_ptr) * KV_HEADS
        for item in tl.range(tl.program_id(0), stop_item, tl.num_programs(0), num_stages=1):
            packed = tl.load(work_ptr + 1 + item // KV_HEADS)
            _decode_item(
                packed >> 16, item % KV_HEADS, packed & 0xFFFF, q_ptr, k_ptr, v_ptr, table_ptr, seq_lens_ptr,
                members_ptr, tickets_ptr, sinks_ptr, out_ptr, lse_ptr, workspace_ptr, scale, softcap, num_chunks, batch,
                stride_q_row, stride_q_head, stride_page, stride_kv_head, stride_token, stride_table, stride_out_row,
                stride_out_head, KV_HEADS, GROUP, D, D_PAD, PAGE, CHUNK, WINDOW, HAS_SOFTCAP, HAS_SINKS, HAS_LSE,
                UPCAST, ROWS, TOKENS, MEMBERS, TICKETS, SPAN,
            )  # fmt: skip
    else:
        _decode_item(
            tl.program_id(2), tl.program_id(1), tl.program_id(0), q_ptr, k_ptr, v_ptr, table_ptr, seq_lens_ptr,
            members_ptr, tickets_ptr, sinks_ptr, out_ptr, lse_ptr, workspace_ptr, scale, softcap, num_chunks, batch,
            stride_q_row, stride_q_head, stride_page, stride_kv_head, stride_token, stride_table, stride_out_row,
            stride_out_head, KV_HEADS, GROUP, D, D_PAD, PAGE, CHUNK, WINDOW, HAS_SOFTCAP, HAS_SINKS, HAS_LSE,
            UPCAST, ROWS, TOKENS, MEMBERS, TICKETS, SPAN,
        )  # fmt: skip
