"""Paged attention on the CPU: decode and extend in one function, straight from the pages, nothing gathered.

One query row attends to keys [max(0, position - window + 1), position] of its sequence:
``out = sum_j softmax_j(scale * q . k_j) v_j``. Scores are computed page by page, the exponential by a polynomial
(relative error below 3e-7, Cephes style) so that LLVM can vectorize it. Work per row depends on its own position alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from octavo_kernels.cpu.elements import FAST, exp2_parts, load, store


@lru_cache
def attention(
    *, head_dim: int, num_heads: int, num_kv_heads: int, page_size: int, window: int = 0
) -> Callable[..., None]:
    """Compile paged attention for one model shape.

    Args:
        head_dim: D.
        num_heads: H query heads.
        num_kv_heads: K heads of keys and values; H is a multiple of K.
        page_size: tokens per page.
        window: most keys that a query sees, itself included; 0 means all.

    Returns:
        ``attend(q, pool, k_offset, v_offset, page_stride, tables, row_sequence, row_position, first, last, scale, out)``
        with q and out flat [T * H * D], pool flat, k_offset and v_offset the elements from a page's start to the
        layer's keys and values ([K, page_size, D] each), page_stride in elements, tables int32 [S, max_pages],
        row_sequence and row_position int32 [T]; rows [first, last) are computed.
    """
    D, H, K, PAGE, WINDOW = head_dim, num_heads, num_kv_heads, page_size, window
    G = H // K

    @njit(fastmath=FAST | {"nnan", "ninf"}, nogil=True, error_model="numpy", boundscheck=False, cache=True)
    def attend(
        q: Any, pool: Any, k_offset: Any, v_offset: Any, page_stride: Any, tables: Any,
        row_sequence: Any, row_position: Any, first: Any, last: Any, scale: Any, out: Any,
    ) -> None:  # fmt: skip
        capacity = tables.shape[1] * PAGE
        scores = np.empty((G, capacity), np.float32)
        exponent_bits = np.empty(capacity, np.int32)
        exponent = exponent_bits.view(np.float32)
        query = np.empty(D, np.float32)
        acc = np.empty((G, D), np.float32)
        to_base_2 = np.float32(scale * 1.4426950408889634)
        for row in range(first, last):
            sequence = row_sequence[row]
            end = row_position[row] + 1
            begin = 0
            if WINDOW > 0:
                begin = max(0, end - WINDOW)
            first_page = begin // PAGE
            num_pages = (end + PAGE - 1) // PAGE
            for head in range(K):
                for g in range(G):
                    q_base = (row * H + head * G + g) * D
                    source = q[q_base : q_base + D]
                    for d in range(D):
                        query[d] = load(source, d)
                    for page in range(first_page, num_pages):
                        base = np.int64(tables[sequence, page]) * page_stride + k_offset + head * PAGE * D
                        keys = pool[base : base + PAGE * D]
                        tile = scores[g, page * PAGE : (page + 1) * PAGE]
                        for j in range(PAGE):
                            dot = np.float32(0)
                            for d in range(D):
                                dot += query[d] * load(keys, j * D + d)
                            tile[j] = dot
                for g in range(G):
                    # Slices, because their indices are known not to be negative, so that loops over them vectorize.
                    seen = scores[g, begin:end]
                    length = end - begin
                    top = np.float32(-3.0e38)
                    for j in range(length):
                        top = max(top, seen[j])
                    for j in range(length):
                        x = max((seen[j] - top) * to_base_2, np.float32(-126.0))
                        seen[j], exponent_bits[j] = exp2_parts(x)
                    total = np.float32(0)
                    for j in range(length):
                        weight = seen[j] * exponent[j]
                        seen[j] = weight
                        total += weight
                    inverse = np.float32(1) / total
                    for j in range(length):
                        seen[j] *= inverse
                    for d in range(D):
                        acc[g, d] = np.float32(0)
                for page in range(first_page, num_pages):
                    base = np.int64(tables[sequence, page]) * page_stride + v_offset + head * PAGE * D
                    values = pool[base : base + PAGE * D]
                    j_begin = max(0, begin - page * PAGE)
                    j_end = min(PAGE, end - page * PAGE)
                    for g in range(G):
                        weights = scores[g, page * PAGE : (page + 1) * PAGE]
                        total_g = acc[g]
                        j = j_begin
                        # Eight keys at a time keep the accumulator in registers longer; the split depends on the
                        # row's own position only.
                        while j + 8 <= j_end:
                            w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
                            w4, w5, w6, w7 = weights[j + 4], weights[j + 5], weights[j + 6], weights[j + 7]
                            eight = values[j * D : (j + 8) * D]
                            for d in range(D):
                                total_g[d] += (
                                    (w0 * load(eight, d) + w1 * load(eight, D + d))
                                    + (w2 * load(eight, 2 * D + d) + w3 * load(eight, 3 * D + d))
                                ) + (
                                    (w4 * load(eight, 4 * D + d) + w5 * load(eight, 5 * D + d))
                                    + (w6 * load(eight, 6 * D + d) + w7 * load(eight, 7 * D + d))
                                )
                            j += 8
                        while j < j_end:
                            weight = weights[j]
                            one = values[j * D : (j + 1) * D]
                            for d in range(D):
                                total_g[d] += weight * load(one, d)
                            j += 1
                for g in range(G):
                    o = (row * H + head * G + g) * D
                    target = out[o : o + D]
                    for d in range(D):
                        store(target, d, acc[g, d])

    return attend
