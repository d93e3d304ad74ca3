"""RMSNorm of hidden states, alone or after adding to the residual stream.

The numerics are those of Hugging Face models: fp32 throughout, rounded to the activations' dtype before the weight is
applied. One program owns one row, so a row's result does not depend on the batch.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_tensor, check_vector
from octavo_kernels.arithmetic import next_power_of_2
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch, wait_for_previous


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write weight * x / sqrt(mean(x**2) + eps), row by row (Zhang and Sennrich, arXiv 1910.07467).

    Args:
        x: [T, H] fp32, fp16 or bf16; rows may be strided.
        weight: [H] dtype of x.
        out: [T, H] dtype of x, written; may be `x`.
        eps: added to the mean square.
    """
    _check(x, weight, out)
    _launch(x, x, weight, out, eps, has_residual=False)


def add_rmsnorm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Add x to the residual in place, then normalise the sum.

    Args:
        x: [T, H] fp32, fp16 or bf16; rows may be strided.
        residual: [T, H] dtype of x, becomes residual + x (rounded to its dtype, which is what is normalised).
        weight: [H] dtype of x.
        out: [T, H] dtype of x, written; may be `x`.
        eps: added to the mean square.
    """
    _check(x, weight, out)
    check_tensor("residual", residual, tuple(x.shape), x.dtype, x.device)
    _launch(x, residual, weight, out, eps, has_residual=True)


def _check(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    if x.ndim != 2:
        raise ValueError(f"x: {x.ndim} axes, expected [T, H]")
    check_tensor("x", x, tuple(x.shape), FLOATS, x.device)
    check_vector("weight", weight, x.shape[1], x.dtype, x.device)
    check_tensor("out", out, tuple(x.shape), x.dtype, x.device)


def _launch(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float, *, has_residual: bool
) -> None:
    num_rows, width = x.shape
    if num_rows == 0:
        return
    padded = next_power_of_2(width)
    launch(
        _rmsnorm_rows,
        (num_rows,),
        x,
        residual,
        weight,
        out,
        eps,
        x.stride(0),
        residual.stride(0),
        out.stride(0),
        H=width,
        H_PAD=padded,
        HAS_RESIDUAL=has_residual,
        num_warps=min(16, max(1, padded // 512)),
        **early_launch(),
    )


@triton.jit
def _rmsnorm_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    eps,
    stride_x_row,
    stride_residual_row,
    stride_out_row,
    H: tl.constexpr,
    H_PAD: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Compute out = weight * x / sqrt(mean(x^2) + eps) of one row [H]; with a residual, of x + residual.

    Grid (row). The whole row sits in registers: it is read once and reduced in one fixed order.
    """
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, H_PAD)
    inside = cols < H
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0).to(tl.float32)
    wait_for_previous(EARLY)
    x = tl.load(x_ptr + row * stride_x_row + cols, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_ptrs = residual_ptr + row * stride_residual_row + cols
        total = (x + tl.load(residual_ptrs, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(residual_ptrs, total, mask=inside)
        x = total.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / H + eps)
    out = (x * scale).to(dtype).to(tl.float32) * weight
    tl.store(out_ptr + row * stride_out_row + cols, out.to(dtype), mask=inside)
