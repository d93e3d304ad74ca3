"""Paged decode attention: one new token a sequence reads all its keys and values from pages.

The context is split into chunks of a fixed number of tokens (flash-decoding, split by length and never by batch), so a
sequence's result does not depend on what else is in the batch. A sequence within one chunk is finished by the first
kernel; longer ones leave a partial state per chunk, which the second kernel merges in chunk order, without atomics.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.chunk_states import merge_chunks, visible_chunks, write_merged
from octavo_kernels.decode_plan import DecodePlan, check_plan
from octavo_kernels.heuristics import CHUNK, DECODE, DECODE_EXACT, Tile, lookup
from octavo_kernels.launch import architecture, check_attention, check_options, check_vector, must_upcast
from octavo_kernels.overlap import early_launch, wait_for_previous
from octavo_kernels.page_tiles import finish_softmax, fold_state, load_tile, raw_scores, softmax_weights, token_offsets


def decode_workspace_size(batch: int, num_heads: int, head_dim: int, max_len: int, chunk: int = CHUNK) -> int:
    """Return how many fp32 elements `paged_decode` needs as its workspace.

    Args:
        batch: sequences.
        num_heads: query heads.
        head_dim: elements a head.
        max_len: tokens that the block table has room for, max_pages * PAGE.
        chunk: tokens a chunk.
    """
    return batch * num_heads * -(-max_len // chunk) * (head_dim + 2)


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
    chunk: int = CHUNK,
    lse: torch.Tensor | None = None,
    exact: bool = False,
    plan: DecodePlan | None = None,
    tickets: torch.Tensor | None = None,
    span: int = 1,
    tile: Tile | None = None,
) -> None:
    """Attend with one query token a sequence.

    The grids depend on shapes only (the width of the block table, not the lengths), so a CUDA graph can hold them.
    Programs of chunks that a sequence does not reach return at once, but they are not free: a plan spares them.

    Args:
        q: [B, Hq, D] fp32, fp16 or bf16; D a multiple of 16.
        k: [P, Hk, PAGE, D] view of the pool, dtype of q; PAGE 16, 32 or 64.
        v: the same for values, with the same strides.
        block_table: [B, max_pages] int32; entries before the window may hold anything.
        seq_lens: [B] int32, tokens in the pages, the query's own included; 0 gives zeros and an lse of -inf, and below 0
            `out` and `lse` keep what they have.
        out: [B, Hq, D] dtype of q, written.
        workspace: fp32, at least `decode_workspace_size` elements; its contents do not matter.
        scale: factor of the scores.
        window: newest tokens that a query sees, itself included; 0 means all.
        softcap: scores become softcap * tanh(score / softcap); 0 means off.
        sinks: [Hq] fp32, one more score a head that takes part in the softmax and has no value.
        chunk: tokens a program reads; a multiple of 64 suits every tile.
        lse: [B, Hq] fp32, written if given: natural logarithm of the softmax denominator, the sink included.
        exact: give the very bits that `paged_extend` with `exact` and the same chunk gives for the same query.
        plan: the work list of this step, made for this chunk and window; without it the grid covers the whole table.
        tickets: [B * Hk] int32, zero between launches: whoever finishes the last chunk of a sequence folds all of them,
            in order, instead of a second kernel. A plan has its own.
        span: a sequence of up to so many chunks is read by one program, which folds them in order itself: the same bits
            with less traffic, for batches that fill the device anyway. Ignored with a plan or tickets.
        tile: launch parameters, by default those of `heuristics.DECODE` or `DECODE_EXACT`.
    """
    check_attention(q, k, v, block_table, seq_lens, out, sinks, lse)
    check_options(scale, window, softcap)
    batch, num_heads, head_dim = q.shape
    num_kv_heads, page_size = k.shape[1], k.shape[2]
    if block_table.shape[0] != batch:
        raise ValueError(f"block_table: {block_table.shape[0]} rows, expected {batch}, one per query")
    group, d_pad = num_heads // num_kv_heads, max(16, triton.next_power_of_2(head_dim))
    tile = tile or lookup(DECODE_EXACT if exact else DECODE, architecture(), d_pad, group, q.dtype, page_size)
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
    if plan is not None or tickets is not None:
        span = 1
    lse_out = lse if lse is not None else workspace  # an address that is never written
    rows = max(tile.rows, triton.next_power_of_2(group))
    grid: tuple[int, ...] = (1 if num_chunks <= span and window == 0 else num_chunks, num_kv_heads, batch)
    if plan is not None:
        check_plan(plan, batch, num_kv_heads, chunk, window, rows, group)
        grid = (min(plan.programs, num_chunks * num_kv_heads * batch),)
        tickets = plan.tickets
    elif tickets is not None:
        check_vector("tickets", tickets, batch * num_kv_heads, torch.int32, q.device)
    _decode_chunks[grid](
        q,
        k,
        v,
        block_table,
        seq_lens,
        plan.work if plan else None,
        plan.members if plan else None,
        tickets,
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
        KV_HEADS=num_kv_heads,
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
        ROWS=rows,
        TOKENS=tile.tokens,
        LISTED=plan is not None,
        MEMBERS=plan.members.shape[1] if plan and plan.members is not None else 0,
        TICKETS=tickets is not None,
        SPAN=span,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early_launch(),
    )
    if num_chunks > span and tickets is None:
        merge_chunks[num_heads, batch](
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
            SPAN=span,
            HAS_SINKS=sinks is not None,
            HAS_LSE=lse is not None,
            num_warps=1 if d_pad <= 128 else 2,
            **early_launch(),
        )


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
