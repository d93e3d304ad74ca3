"""RMSNorm, alone or after adding to the residual stream."""

import torch

from octavo_kernels.reference.precision import widened


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Write weight * x / sqrt(mean(x**2) + eps), row by row.

    Args:
        x: [T, H].
        weight: [H].
        out: [T, H], written; may be `x`.
        eps: added to the mean square.
    """
    out.copy_(normalised(x, weight, eps))


def add_rmsnorm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, eps: float) -> None:
    """Add x to the residual in place, then normalise the sum: `rmsnorm(residual + x)`.

    Args:
        x: [T, H].
        residual: [T, H], becomes residual + x.
        weight: [H].
        out: [T, H], written; may be `x`.
        eps: added to the mean square.
    """
    residual.add_(x)
    out.copy_(normalised(residual, weight, eps))


def normalised(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return weight * x / sqrt(mean(x**2) + eps)."""
    wide = widened(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight.to(x.dtype)  # rounded before the weight, as Hugging Face models do
