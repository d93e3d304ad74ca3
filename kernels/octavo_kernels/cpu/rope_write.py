"""Rotary embedding, optional q/k norm and the write of new keys and values into their pages, in one pass.

For each token: split ``qkv``, normalize q and k per head (Qwen3), rotate them (NeoX halves):
``(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)``, store q contiguously and k, v in the token's slot.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from octavo_kernels.cpu.elements import FAST, load, store


@lru_cache
def rope_write(
    *, head_dim: int, num_heads: int, num_kv_heads: int, page_size: int, qk_norm: bool
) -> Callable[..., None]:
    """Compile the fused write for one model shape.

    Returns:
        ``write(qkv, positions, slots, cos_sin, q_weight, k_weight, eps, pool, k_offset, v_offset, page_stride, first,
        last, q_out)``: qkv flat [T * (H + 2K) * D], positions and slots int64 [T] (slot = page * page_size + offset),
        cos_sin float32 flat [max_len * D] holding cos then sin halves, weights float32 [D] (unused without qk_norm),
        q_out flat [T * H * D].
    """
    D, H, K, PAGE = head_dim, num_heads, num_kv_heads, page_size
    HALF = D // 2

    @njit(fastmath=FAST, nogil=True, error_model="numpy", boundscheck=False, cache=True)
    def write(
        qkv: Any, positions: Any, slots: Any, cos_sin: Any, q_weight: Any, k_weight: Any, eps: Any,
        pool: Any, k_offset: Any, v_offset: Any, page_stride: Any, first: Any, last: Any, q_out: Any,
    ) -> None:  # fmt: skip
        head = np.empty(D, np.float32)
        for row in range(first, last):
            angles = positions[row] * D
            page = slots[row] // PAGE
            offset = slots[row] % PAGE
            table = cos_sin[angles : angles + D]
            for h in range(H + K):
                source = qkv[(row * (H + 2 * K) + h) * D : (row * (H + 2 * K) + h + 1) * D]
                for d in range(D):
                    head[d] = load(source, d)
                if qk_norm:
                    square = np.float32(0)
                    for d in range(D):
                        square += head[d] * head[d]
                    inverse = np.float32(1) / np.sqrt(square / np.float32(D) + eps)
                    if h < H:
                        for d in range(D):
                            head[d] = head[d] * inverse * q_weight[d]
                    else:
                        for d in range(D):
                            head[d] = head[d] * inverse * k_weight[d]
                if h < H:
                    target = q_out[(row * H + h) * D : (row * H + h + 1) * D]
                else:
                    start = page * page_stride + k_offset + ((h - H) * PAGE + offset) * D
                    target = pool[start : start + D]
                for d in range(HALF):
                    cos, sin = table[d], table[HALF + d]
                    store(target, d, head[d] * cos - head[HALF + d] * sin)
                    store(target, HALF + d, head[HALF + d] * cos + head[d] * sin)
            for h in range(K):
                source = qkv[(row * (H + 2 * K) + H + K + h) * D : (row * (H + 2 * K) + H + K + h + 1) * D]
                start = page * page_stride + v_offset + (h * PAGE + offset) * D
                target = pool[start : start + D]
                for d in range(D):
                    target[d] = source[d]

    return write
