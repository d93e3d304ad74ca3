"""Paged decode attention: one new token a sequence reads all its keys and values from pages.

The context is split into chunks of a fixed number of tokens (flash-decoding, split by length and never by batch), so a
sequence's result does not depend on what else is in the batch. A sequence within one chunk is finished by the first
kernel; longer ones leave a partial state per chunk, which the second kernel merges in chunk order, without atomics.
"""

import torch

from octavo_kernels.arguments import check_attention, check_options, check_vector
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.chunk_states import merge_chunks
from octavo_kernels.decode_kernels import _decode_chunks
from octavo_kernels.decode_plan import DecodePlan, check_plan
from octavo_kernels.heuristics import CHUNK, DECODE, DECODE_EXACT, Tile, lookup
from octavo_kernels.launch import architecture, launch, must_upcast
from octavo_kernels.overlap import early_launch


def decode_workspace_size(batch: int, num_heads: int, head_dim: int, max_len: int, chunk: int = CHUNK) -> int:
    """Return how many fp32 elements `paged_decode` needs as its workspace.

    Args:
        batch: sequences.
        num_heads: query heads.
        head_dim: elements a head.
        max_len: tokens that the block table has room for, max_pages * PAGE.
        chunk: tokens a chunk.
    """
    return batch * num_heads * cdiv(max_len, chunk) * (head_dim + 2)


def most_members(head_dim: int, group: int, dtype: torch.dtype, page_size: int) -> int:
    """Return how many sequences may read a shared prefix together: as many as fit into the rows of a program.

    Args:
        head_dim: elements a head.
        group: query heads a key/value head.
        dtype: of queries, keys and values.
        page_size: tokens a page.
    """
    d_pad = max(16, next_power_of_2(head_dim))
    return _tile_rows(lookup(DECODE_EXACT, architecture(), d_pad, group, dtype, page_size), group) // group


def _tile_rows(tile: Tile, group: int) -> int:
    return max(tile.rows, next_power_of_2(group))


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
    group, d_pad = num_heads // num_kv_heads, max(16, next_power_of_2(head_dim))
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
    num_chunks = cdiv(max_len, chunk)
    if plan is not None or tickets is not None:
        span = 1
    lse_out = lse if lse is not None else workspace  # an address that is never written
    rows = _tile_rows(tile, group)
    grid: tuple[int, ...] = (1 if num_chunks <= span and window == 0 else num_chunks, num_kv_heads, batch)
    if plan is not None:
        check_plan(plan, batch, num_kv_heads, chunk, window, rows, group)
        grid = (min(plan.programs, num_chunks * num_kv_heads * batch),)
        tickets = plan.tickets
    elif tickets is not None:
        check_vector("tickets", tickets, batch * num_kv_heads, torch.int32, q.device)
    launch(
        _decode_chunks,
        grid,
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
        launch(
            merge_chunks,
            (num_heads, batch),
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
