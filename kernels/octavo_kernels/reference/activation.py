"""The gated activation of the feed-forward layer."""

import torch

from octavo_kernels.reference.precision import widened


def silu_mul(gate_up: torch.Tensor, out: torch.Tensor) -> None:
    """Write silu(gate) * up.

    Args:
        gate_up: [T, 2 I], a row is gate followed by up.
        out: [T, I], written.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(widened(gate)).to(gate.dtype) * up)
