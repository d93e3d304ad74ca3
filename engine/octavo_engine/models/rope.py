"""Tables of rotary angles, in float32 as transformers computes them."""

from __future__ import annotations

import math

import torch

from octavo_engine.models.config import Rope


def cos_sin_table(rope: Rope, head_dim: int, max_len: int) -> torch.Tensor:
    """Return [max_len, head_dim] float32: each row is cos of the head_dim / 2 angles, then their sin."""
    angles = torch.arange(max_len, dtype=torch.float32)[:, None] * inverse_frequencies(rope, head_dim)[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def inverse_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Return [head_dim / 2] float32 inverse frequencies.

    With `rope.factor` != 1, long wavelengths are stretched by the factor, short ones kept, and those between blended:
    the "llama3" scaling of the Llama 3.1 reference code.
    """
    inverse = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
    if rope.factor == 1.0:
        return inverse
    wavelength = 2 * math.pi / inverse
    longest = rope.original_max_position / rope.low_freq_factor
    shortest = rope.original_max_position / rope.high_freq_factor
    smooth = (rope.original_max_position / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * inverse / rope.factor + smooth * inverse
    scaled = torch.where(wavelength > longest, inverse / rope.factor, inverse)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), blended, scaled)
