"""Between the QKV projection and attention, in one launch: split, normalise and rotate Q and K, write K and V to pages."""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_pages, check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch, wait_for_previous

# Tokens of a program: more make wider loads, fewer more programs for a few tokens. The same for any number of tokens, for
# the order in which a norm's squares are added may depend on it.
_TOKENS = 2


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
    """Rotate NeoX style (RoFormer, arXiv 2104.09864, on halves); the optional per-head RMSNorm is that of Qwen3.

    A token's bits do not depend on how many there are.

    Args:
        qkv: [T, (Hq + 2 Hk) * D] fp32, fp16 or bf16; rows may be strided.
        positions: [T] int64, a row of `cos_sin` for each token; padding needs a valid one too.
        slots: [T] int64, page_id * PAGE + offset; -1 (padding) writes no K and V.
        cos_sin: [max_position, D] fp32, a row is cos(D/2) followed by sin(D/2).
        k: [P, Hk, PAGE, D] view of the pool, dtype of qkv, written.
        v: the same for values, with the same strides, written.
        q_out: [T, Hq, D] contiguous, dtype of qkv, written.
        q_weight: [D] dtype of qkv, weight of the norm of Q, or None for no norm.
        k_weight: [D] dtype of qkv, weight of the norm of K, or None for no norm.
        eps: added to the mean square.
    """
    if q_out.ndim != 3 or not q_out.is_contiguous():
        raise ValueError(f"q_out: shape {tuple(q_out.shape)}, expected a contiguous [T, Hq, D]")
    num_tokens, num_heads, head_dim = q_out.shape
    device, dtype = qkv.device, qkv.dtype
    check_pages(k, v, dtype, device, head_dim)
    num_kv_heads, page_size = k.shape[1], k.shape[2]
    check_tensor("qkv", qkv, (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), FLOATS, device)
    check_tensor("q_out", q_out, tuple(q_out.shape), dtype, device)
    check_vector("positions", positions, num_tokens, torch.int64, device)
    check_vector("slots", slots, num_tokens, torch.int64, device)
    check_tensor("cos_sin", cos_sin, (cos_sin.shape[0], head_dim), torch.float32, device)
    if not cos_sin.is_contiguous():
        raise ValueError(f"cos_sin: strides {cos_sin.stride()}, expected a contiguous tensor")
    if num_heads % num_kv_heads != 0:
        raise ValueError(f"q_out: {num_heads} heads, expected a multiple of the {num_kv_heads} heads of k")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            check_vector(name, weight, head_dim, dtype, device)
    if num_tokens == 0:
        return
    group = num_heads // num_kv_heads
    half_pad = next_power_of_2(head_dim // 2)
    group_pad = next_power_of_2(group)
    launch(
        _rope_write_groups,
        (cdiv(num_tokens, _TOKENS), num_kv_heads),
        qkv,
        positions,
        slots,
        cos_sin,
        k,
        v,
        q_out,
        q_weight,
        k_weight,
        eps,
        num_tokens,
        qkv.stride(0),
        k.stride(0),
        k.stride(1),
        k.stride(2),
        TOKENS=_TOKENS,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_PAD=group_pad,
        HALF=head_dim // 2,
        HALF_PAD=half_pad,
        PAGE=page_size,
        num_warps=max(1, _TOKENS * group_pad * half_pad // 1024),
        **early_launch(),
    )


@triton.jit
def _norm_rotate(low, high, cos, sin, weight_ptr, eps, HALF: tl.constexpr, HALF_PAD: tl.constexpr, dtype: tl.constexpr):
    """Normalise (if there is a weight) and rotate the two halves [ROWS, HALF_PAD] of some heads, in fp32.

    Every rounding is spelled out (fma): left to itself, a compiler chooses which products become part of a fused
    multiply-add.
    """
    if weight_ptr is not None:
        cols = tl.arange(0, HALF_PAD)
        squares = tl.sum(tl.fma(low, low, 0.0), axis=1) + tl.sum(tl.fma(high, high, 0.0), axis=1)
        scale = (1.0 / tl.sqrt(tl.fma(squares, 1.0 / (2 * HALF), eps)))[:, None]
        weight_low = tl.load(weight_ptr + cols, mask=cols < HALF, other=0.0).to(tl.float32)[None, :]
        weight_high = tl.load(weight_ptr + HALF + cols, mask=cols < HALF, other=0.0).to(tl.float32)[None, :]
        # Rounded before and after the weight, as Hugging Face models do.
        low = ((low * scale).to(dtype).to(tl.float32) * weight_low).to(dtype).to(tl.float32)
        high = ((high * scale).to(dtype).to(tl.float32) * weight_high).to(dtype).to(tl.float32)
    return tl.fma(low, cos, -tl.fma(high, sin, 0.0)), tl.fma(high, cos, tl.fma(low, sin, 0.0))


@triton.jit(do_not_specialize=["num_tokens"])
def _rope_write_groups(
    qkv_ptr,
    positions_ptr,
    slots_ptr,
    cos_sin_ptr,
    k_ptr,
    v_ptr,
    q_out_ptr,
    q_weight_ptr,
    k_weight_ptr,
    eps,
    num_tokens,
    stride_qkv_row,
    stride_page,
    stride_kv_head,
    stride_token,
    TOKENS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the halves of a head, after an optional RMSNorm.

    Grid (TOKENS tokens, key/value head): the GROUP query heads, the key and the value of each of these tokens.
    """
    first, kv_head = tl.program_id(0).to(tl.int64) * TOKENS, tl.program_id(1)
    D: tl.constexpr = 2 * HALF
    num_heads = KV_HEADS * GROUP
    dtype: tl.constexpr = q_out_ptr.dtype.element_ty
    cols = tl.arange(0, HALF_PAD)[None, :]
    inside = cols < HALF
    wait_for_previous(EARLY)

    rows = tl.arange(0, TOKENS * GROUP_PAD)
    token, head = first + rows // GROUP_PAD, kv_head * GROUP + rows % GROUP_PAD
    present = (token < num_tokens) & (rows % GROUP_PAD < GROUP)
    cells = present[:, None] & inside
    position = tl.load(positions_ptr + token, mask=present, other=0)
    angles = cos_sin_ptr + position[:, None] * D + cols
    cos = tl.load(angles, mask=cells, other=0.0)
    sin = tl.load(angles + HALF, mask=cells, other=0.0)
    q_in = qkv_ptr + token[:, None] * stride_qkv_row + head[:, None] * D + cols
    low = tl.load(q_in, mask=cells, other=0.0).to(tl.float32)
    high = tl.load(q_in + HALF, mask=cells, other=0.0).to(tl.float32)
    low, high = _norm_rotate(low, high, cos, sin, q_weight_ptr, eps, HALF, HALF_PAD, dtype)
    q_out = q_out_ptr + (token * num_heads + head)[:, None] * D + cols
    tl.store(q_out, low.to(dtype), mask=cells)
    tl.store(q_out + HALF, high.to(dtype), mask=cells)

    token = first + tl.arange(0, TOKENS)
    present = token < num_tokens
    slot = tl.load(slots_ptr + token, mask=present, other=-1)
    position = tl.load(positions_ptr + token, mask=present, other=0)
    written = (slot >= 0)[:, None] & inside
    angles = cos_sin_ptr + position[:, None] * D + cols
    cos = tl.load(angles, mask=written, other=0.0)
    sin = tl.load(angles + HALF, mask=written, other=0.0)
    place = slot // PAGE * stride_page + kv_head.to(tl.int64) * stride_kv_head + slot % PAGE * stride_token
    place = place[:, None] + cols
    k_in = qkv_ptr + token[:, None] * stride_qkv_row + (num_heads + kv_head) * D + cols
    low = tl.load(k_in, mask=written, other=0.0).to(tl.float32)
    high = tl.load(k_in + HALF, mask=written, other=0.0).to(tl.float32)
    low, high = _norm_rotate(low, high, cos, sin, k_weight_ptr, eps, HALF, HALF_PAD, dtype)
    tl.store(k_ptr + place, low.to(dtype), mask=written)
    tl.store(k_ptr + place + HALF, high.to(dtype), mask=written)
    v_in = k_in + KV_HEADS * D
    tl.store(v_ptr + place, tl.load(v_in, mask=written, other=0.0), mask=written)
    tl.store(v_ptr + place + HALF, tl.load(v_in + HALF, mask=written, other=0.0), mask=written)
