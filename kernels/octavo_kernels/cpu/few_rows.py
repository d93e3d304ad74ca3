"""Matrix products of a few rows on the CPU: the weight is streamed once, in bfloat16 where it was stored so.

``out[m, n] = sum_k x[m, k] * w[n, k]`` in float32. A decode step of a few sequences is bound by reading weights; stored as
bfloat16 they are half the bytes, and widening them to float32 is exact. Each output is one chain of fused multiply-adds
over k, in blocks of `k_block` that are added up in order: the order in which oneDNN's packed products sum on AVX2 and
AVX-512 machines, so that small and large batches can give the same bits (the caller probes that they do).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from octavo_kernels.cpu.elements import load

LANES: Final = 64
"""Outputs computed side by side; a weight is laid out as [N / LANES, K, LANES]."""
UNROLL: Final = 8
"""K must be a multiple of this."""

_ROWS: Final = 32


def lay_out(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a weight [N, K] (float32, or bfloat16 as uint16) as the flat layout that `few_rows_product` reads."""
    rows, width = weight.shape
    if rows % LANES or width % UNROLL:
        raise ValueError(f"weight: shape {weight.shape}, expected multiples of {LANES} and {UNROLL}")
    return np.ascontiguousarray(weight.reshape(rows // LANES, LANES, width).transpose(0, 2, 1)).reshape(-1)


@njit(fastmath={"contract"}, nogil=True, error_model="numpy", boundscheck=False, cache=True)
def few_rows_product(
    x: Any, weight: Any, num_rows: Any, width: Any, height: Any, k_block: Any, first: Any, last: Any, out: Any
) -> None:
    """Compute the outputs of lane blocks [first, last).

    Args:
        x: float32 flat [num_rows * width].
        weight: flat, from `lay_out`.
        num_rows: M.
        width: K.
        height: N.
        k_block: length of a chain.
        first: first block of LANES outputs.
        last: end of the blocks.
        out: float32 flat [num_rows * height], written.
    """
    chain = np.empty(_ROWS * LANES, np.float32)
    wide = np.empty(UNROLL * LANES, np.float32)
    for block in range(first, last):
        base = np.int64(block) * width * LANES
        for m0 in range(0, num_rows, _ROWS):
            rows = min(_ROWS, num_rows - m0)
            for k0 in range(0, width, k_block):
                for i in range(rows * LANES):
                    chain[i] = np.float32(0)
                for k in range(k0, min(k0 + k_block, width), UNROLL):
                    source = weight[base + k * LANES : base + (k + UNROLL) * LANES]
                    for i in range(UNROLL * LANES):
                        wide[i] = load(source, i)
                    for r in range(rows):
                        at = (m0 + r) * width + k
                        x0, x1, x2, x3 = x[at], x[at + 1], x[at + 2], x[at + 3]
                        x4, x5, x6, x7 = x[at + 4], x[at + 5], x[at + 6], x[at + 7]
                        part = chain[r * LANES : (r + 1) * LANES]
                        for j in range(LANES):
                            # One statement per k: the compiler may fuse each into a multiply-add, never reorder them.
                            total = part[j]
                            total = total + x0 * wide[j]
                            total = total + x1 * wide[LANES + j]
                            total = total + x2 * wide[2 * LANES + j]
                            total = total + x3 * wide[3 * LANES + j]
                            total = total + x4 * wide[4 * LANES + j]
                            total = total + x5 * wide[5 * LANES + j]
                            total = total + x6 * wide[6 * LANES + j]
                            total = total + x7 * wide[7 * LANES + j]
                            part[j] = total
                for r in range(rows):
                    target = (m0 + r) * height + block * LANES
                    for j in range(LANES):
                        if k0 == 0:
                            out[target + j] = chain[r * LANES + j]
                        else:
                            out[target + j] += chain[r * LANES + j]
