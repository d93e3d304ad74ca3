"""One sequence in pages, its queries computed by decode and by extend in the exact mode."""

from __future__ import annotations

import torch
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.decode_plan import DecodePlan, allocate_plan, plan_decode
from octavo_kernels.extend_attention import paged_extend
from unit.kernels.paged_batch import DEVICE, ON_GPU, Batch, Shape, make_batch

CHUNK = 256 if ON_GPU else 64
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
HEAD_DIM = 128 if ON_GPU else 32


def exact_shape(group: int = 4, **options) -> Shape:
    return Shape(HEAD_DIM, group, 16, dtype=DTYPE, chunk=CHUNK, **options)


def sequence(shape: Shape, length: int, *, window: int = 0) -> tuple[Batch, dict[str, object]]:
    """One sequence whose every token is a query, all pages kept whatever the window."""
    batch = make_batch(shape, [length], [length])
    return batch, {**batch.options, "window": window, "exact": True, "chunk": CHUNK}


def extend(batch: Batch, first: int, stop: int, options) -> tuple[torch.Tensor, torch.Tensor]:
    q = batch.q[first:stop]
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=DEVICE)
    cu_q, lengths = (torch.tensor(x, dtype=torch.int32, device=DEVICE) for x in ([0, stop - first], [stop]))
    paged_extend(q, batch.k, batch.v, batch.block_table, cu_q, lengths, out, lse=lse, **options)
    return out, lse


def decode(
    batch: Batch, lengths: list[int], options, plan: DecodePlan | None = None, table: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the token before each length, all in one batch of sequences that share their pages."""
    q = batch.q[torch.tensor(lengths, device=DEVICE) - 1].contiguous()
    table = batch.block_table.expand(len(lengths), -1).contiguous() if table is None else table
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:2], torch.nan, device=DEVICE)
    size = decode_workspace_size(*q.shape, table.shape[1] * batch.shape.page_size, CHUNK)
    workspace = torch.full((size,), torch.nan, device=DEVICE)
    if plan is not None:
        plan_decode(plan, seq_lens)
    paged_decode(q, batch.k, batch.v, table, seq_lens, out, workspace, lse=lse, plan=plan, **options)
    return out, lse


def plan_for(batch: Batch, rows: int, **options) -> DecodePlan:
    max_len = batch.block_table.shape[1] * batch.shape.page_size
    kv_heads = batch.shape.kv_heads
    return allocate_plan(
        max_batch=rows, max_len=max_len, num_kv_heads=kv_heads, chunk=CHUNK, programs=5, device=DEVICE, **options
    )
