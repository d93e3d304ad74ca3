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
                    for d in range(D):
                        query[d] = load(q, q_base + d)
                    for page in range(first_page, num_pages):
                        base = np.int64(tables[sequence, page]) * page_stride + k_offset + head * PAGE * D
                        keys = pool[base : base + PAGE * D]
                        for j in range(PAGE):
                            dot = np.float32(0)
                            for d in range(D):
                                dot += query[d] * load(keys, j * D + d)
                            scores[g, page * PAGE + j] = dot
                for g in range(G):
                    top = np.float32(-3.0e38)
                    for j in range(begin, end):
                        top = max(top, scores[g, j])
                    for j in range(begin, end):
                        x = max((scores[g, j] - top) * to_base_2, np.float32(-126.0))
                        scores[g, j], exponent_bits[j] = exp2_parts(x)
                    total = np.float32(0)
                    for j in range(begin, end):
                        weight = scores[g, j] * exponent[j]
                        scores[g, j] = weight
                        total += weight
                    inverse = np.float32(1) / total
                    for j in range(begin, end):
                        scores[g, j] *= inverse
                    for d in range(D):
                        acc[g, d] = np.float32(0)
                for page in range(first_page, num_pages):
                    base = np.int64(tables[sequence, page]) * page_stride + v_offset + head * PAGE * D
                    values = pool[base : base + PAGE * D]
                    j_begin = max(0, begin - page * PAGE)
                    j_end = min(PAGE, end - page * PAGE)
                    for g in range(G):
                        j = j_begin
                        # Eight keys at a time keep the accumulator in registers longer; the split depends on the
                        # row's own position only.
                        while j + 8 <= j_end:
                            w0 = scores[g, page * PAGE + j]
                            w1 = scores[g, page * PAGE + j + 1]
                            w2 = scores[g, page * PAGE + j + 2]
                            w3 = scores[g, page * PAGE + j + 3]
                            w4 = scores[g, page * PAGE + j + 4]
                            w5 = scores[g, page * PAGE + j + 5]
                            w6 = scores[g, page * PAGE + j + 6]
                            w7 = scores[g, page * PAGE + j + 7]
                            o = j * D
                            for d in range(D):
                                acc[g, d] += (
                                    (w0 * load(values, o + d) + w1 * load(values, o + D + d))
                                    + (w2 * load(values, o + 2 * D + d) + w3 * load(values, o + 3 * D + d))
                                ) + (
                                    (w4 * load(values, o + 4 * D + d) + w5 * load(values, o + 5 * D + d))
                                    + (w6 * load(values, o + 6 * D + d) + w7 * load(values, o + 7 * D + d))
                                )
                            j += 8
                        while j < j_end:
                            weight = scores[g, page * PAGE + j]
                            for d in range(D):
                                acc[g, d] += weight * load(values, j * D + d)
                            j += 1
                for g in range(G):
                    o = (row * H + head * G + g) * D
                    for d in range(D):
                        store(out, o + d, acc[g, d])

    return attend
