"""Merge two attention states of the same queries over disjoint keys, for shared prefixes (cascade attention)."""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_tensor
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.launch import launch


def merge_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> None:
    """Weigh two outputs by their log-sum-exp (Juravsky et al., "Hydragen", arXiv 2402.05099).

    Sinks belong into one of the two states only. Rows where both sets are empty give 0 and -inf.

    Args:
        out_a: [T, Hq, D] fp32, fp16 or bf16, attention over the first set of keys.
        lse_a: [T, Hq] fp32, its natural log-sum-exp; -inf for an empty set.
        out_b: the same over the second set.
        lse_b: the same over the second set.
        out: [T, Hq, D] dtype of out_a, written; may be `out_a` or `out_b`.
        lse: [T, Hq] fp32, written if given; may be `lse_a` or `lse_b`.
    """
    shape, device = tuple(out_a.shape), out_a.device
    if len(shape) != 3:
        raise ValueError(f"out_a: {len(shape)} axes, expected [T, Hq, D]")
    for name, x in (("out_a", out_a), ("out_b", out_b), ("out", out)):
        check_tensor(name, x, shape, FLOATS if x is out_a else out_a.dtype, device)
        if not x.is_contiguous():
            raise ValueError(f"{name}: strides {x.stride()}, expected a contiguous tensor")
    for name, y in (("lse_a", lse_a), ("lse_b", lse_b), ("lse", lse)):
        if y is not None:
            check_tensor(name, y, shape[:2], torch.float32, device)
            if not y.is_contiguous():
                raise ValueError(f"{name}: strides {y.stride()}, expected a contiguous tensor")
    num_rows, head_dim = shape[0] * shape[1], shape[2]
    if num_rows == 0:
        return
    d_pad = next_power_of_2(head_dim)
    rows = max(1, 1024 // d_pad)
    launch(
        _merge_states,
        (cdiv(num_rows, rows),),
        out_a,
        lse_a,
        out_b,
        lse_b,
        out,
        lse if lse is not None else lse_a,
        num_rows,
        D=head_dim,
        D_PAD=d_pad,
        ROWS=rows,
        HAS_LSE=lse is not None,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _merge_states(
    out_a_ptr,
    lse_a_ptr,
    out_b_ptr,
    lse_b_ptr,
    out_ptr,
    lse_ptr,
    num_rows,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """Compute out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b, lse = log(exp(lse_a) + exp(lse_b)).

    Grid (rows). One program merges ROWS rows of the flattened [T * Hq, D].
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    present = rows < num_rows
    cells = present[:, None] & (dims < D)[None, :]
    offsets = rows[:, None] * D + dims[None, :]
    lse_a = tl.load(lse_a_ptr + rows, mask=present, other=float("-inf"))
    lse_b = tl.load(lse_b_ptr + rows, mask=present, other=float("-inf"))
    out_a = tl.load(out_a_ptr + offsets, mask=cells, other=0.0).to(tl.float32)
    out_b = tl.load(out_b_ptr + offsets, mask=cells, other=0.0).to(tl.float32)
    top = tl.maximum(lse_a, lse_b)
    empty = top == float("-inf")
    safe_top = tl.where(empty, 0.0, top)
    weight_a = tl.exp(lse_a - safe_top)
    weight_b = tl.exp(lse_b - safe_top)
    total = tl.where(empty, 1.0, weight_a + weight_b)
    out = out_a * (weight_a / total)[:, None] + out_b * (weight_b / total)[:, None]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=cells)
    if HAS_LSE:
        tl.store(lse_ptr + rows, tl.where(empty, float("-inf"), safe_top + tl.log(total)), mask=present)
