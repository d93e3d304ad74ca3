"""Between the QKV projection and attention: norm and rotation of Q and K, keys and values written to pages."""

import torch

from octavo_kernels.reference.norm import normalised
from octavo_kernels.reference.precision import widened


def rope_qknorm_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_out: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Split QKV, normalise and rotate Q and K, write K and V to their slots and Q to `q_out`.

    Rotation is NeoX style (halves, not pairs); the optional per-head RMSNorm of Q and K is that of Qwen3.

    Args:
        qkv: [T, (Hq + 2 Hk) * D].
        positions: [T] int64, a row of `cos_sin` for each token.
        slots: [T] int64, page_id * PAGE + offset; -1 writes no K and V.
        cos_sin: [max_position, D] fp32, a row is cos(D/2) followed by sin(D/2).
        k: [P, Hk, PAGE, D] view of the pool, written.
        v: the same for values, written.
        q_out: [T, Hq, D], written.
        q_weight: [D] weight of the norm of Q, or None for no norm.
        k_weight: [D] weight of the norm of K, or None for no norm.
        eps: added to the mean square.
    """
    num_heads, head_dim = q_out.shape[1:]
    num_kv_heads, page_size = k.shape[1:3]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None:
        query = normalised(query, q_weight, eps)
    if k_weight is not None:
        key = normalised(key, k_weight, eps)
    cos, sin = cos_sin[positions][:, None, :].chunk(2, dim=-1)  # [T, 1, D/2] each
    q_out.copy_(_rotated(query, cos, sin))
    written = slots >= 0
    pages, offsets = slots[written] // page_size, slots[written] % page_size
    k[pages, :, offsets] = _rotated(key, cos, sin)[written].to(k.dtype)
    v[pages, :, offsets] = value[written].to(v.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = widened(x).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
