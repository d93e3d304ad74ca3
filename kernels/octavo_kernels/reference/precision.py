"""Attention, norms and activations compute in fp32, or in fp64 where an input is fp64."""

import torch


def widened(x: torch.Tensor) -> torch.Tensor:
    """Return x in the type to compute in."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)
