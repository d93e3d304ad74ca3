"""The small kernels between matrix products, at the widths of Qwen3-0.6B (1024) and Llama-3.1-8B (4096).

At few rows the time is that of launching a kernel in a graph, and the fraction of the roofline says nothing.
"""

from collections.abc import Iterator
from functools import partial

import torch

from octavo_kernels.activation import silu_mul
from octavo_kernels.bench.timing import Row, graph_us, rotated
from octavo_kernels.copy_pages import copy_pages
from octavo_kernels.norm import add_rmsnorm, rmsnorm
from octavo_kernels.rope_write import rope_qknorm_write

_ROWS = (1, 32, 256, 4096)
_BYTES = 2  # of a bf16
_HEAD_DIM = 128
_KV_HEADS = 8
# Qwen3-0.6B and Llama-3.1-8B: hidden size, intermediate size, query heads, norm of Q and K
_MODELS = ((1024, 3072, 16, True), (4096, 14336, 32, False))


def measure() -> Iterator[Row]:
    """Time every kernel at every number of rows."""
    for hidden, intermediate, num_heads, normed in _MODELS:
        for rows in _ROWS:
            yield from _norms(rows, hidden)
            yield _silu_mul(rows, intermediate)
            yield _rope_write(rows, num_heads, normed=normed)
    yield _copy_pages(64)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(torch.bfloat16)


def _norms(rows: int, hidden: int) -> Iterator[Row]:
    weight = _random(hidden)
    sets = rotated(lambda: (_random(rows, hidden), _random(rows, hidden), _random(rows, hidden)))
    cells = _BYTES * rows * hidden
    us = graph_us(lambda x, _, out: rmsnorm(x, weight, out, 1e-6), inputs=sets)
    yield Row(f"rmsnorm H{hidden} T{rows}", us, 2 * cells)
    us = graph_us(lambda x, residual, out: add_rmsnorm(x, residual, weight, out, 1e-6), inputs=sets)
    yield Row(f"add_rmsnorm H{hidden} T{rows}", us, 4 * cells)


def _silu_mul(rows: int, intermediate: int) -> Row:
    sets = rotated(lambda: (_random(rows, 2 * intermediate), _random(rows, intermediate)))
    return Row(f"silu_mul I{intermediate} T{rows}", graph_us(silu_mul, inputs=sets), 3 * _BYTES * rows * intermediate)


def _rope_write(rows: int, num_heads: int, *, normed: bool) -> Row:
    width = (num_heads + 2 * _KV_HEADS) * _HEAD_DIM
    slots = torch.randperm(max(rows, 16) * 4, device="cuda")[:rows]
    pool = torch.zeros(max(rows, 16) // 4, 2, _KV_HEADS, 16, _HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    positions, cos_sin = torch.arange(rows, device="cuda"), torch.randn(max(_ROWS), _HEAD_DIM, device="cuda")
    weight = _random(_HEAD_DIM) if normed else None
    call = partial(_call_rope_write, positions, slots, cos_sin, pool[:, 0], pool[:, 1], weight)
    sets = rotated(lambda: (_random(rows, width), _random(rows, num_heads, _HEAD_DIM)))
    name = f"rope{'_qknorm' if normed else ''}_write Hq{num_heads} T{rows}"
    return Row(name, graph_us(call, inputs=sets), 2 * _BYTES * rows * width)


def _call_rope_write(
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weight: torch.Tensor | None,
    qkv: torch.Tensor,
    q_out: torch.Tensor,
) -> None:
    rope_qknorm_write(qkv, positions, slots, cos_sin, k, v, q_out, weight, weight, 1e-6)


def _copy_pages(num_pages: int) -> Row:
    pool = torch.zeros(256, 32, 2, _KV_HEADS, 16, _HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    pages = torch.randperm(len(pool), dtype=torch.int32, device="cuda")
    us = graph_us(copy_pages, inputs=[(pool, pages[:num_pages], pages[num_pages : 2 * num_pages])])
    return Row(f"copy_pages {num_pages} pages", us, 2 * num_pages * pool[0].numel() * _BYTES)
