"""The gated activation of the feed-forward layer: silu(gate) * up (SwiGLU, Shazeer, arXiv 2002.05202)."""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_tensor
from octavo_kernels.arithmetic import cdiv
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch, wait_for_previous

_COLUMNS = 1024


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2 I] fp32, fp16 or bf16, a row is gate followed by up; rows may be strided.
        out: [T, I] dtype of gate_up, written.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % 2 != 0:
        raise ValueError(f"gate_up: shape {tuple(gate_up.shape)}, expected [T, 2 I]")
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    check_tensor("gate_up", gate_up, tuple(gate_up.shape), FLOATS, gate_up.device)
    check_tensor("out", out, (num_rows, width), gate_up.dtype, gate_up.device)
    if num_rows == 0:
        return
    launch(
        _silu_mul_columns,
        (num_rows, cdiv(width, _COLUMNS)),
        gate_up,
        out,
        width,
        gate_up.stride(0),
        out.stride(0),
        COLUMNS=_COLUMNS,
        num_warps=4,
        **early_launch(),
    )


@triton.jit
def _silu_mul_columns(
    gate_up_ptr, out_ptr, width, stride_in_row, stride_out_row, COLUMNS: tl.constexpr, EARLY: tl.constexpr
):
    """Compute out = gate / (1 + exp(-gate)) * up for COLUMNS columns of one row. Grid (row, columns)."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = cols < width
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    wait_for_previous(EARLY)
    gate_ptrs = gate_up_ptr + row * stride_in_row + cols
    gate = tl.load(gate_ptrs, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, mask=inside, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)  # rounded between the two, as Hugging Face models do
    tl.store(out_ptr + row * stride_out_row + cols, (silu * up).to(dtype), mask=inside)
