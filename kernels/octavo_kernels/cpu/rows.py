"""Row-wise operations on the CPU: RMSNorm with and without a residual, and SiLU(gate) * up."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from octavo_kernels.cpu.elements import FAST, exp2_parts, load, store


@lru_cache
def rms_norm(*, size: int) -> Callable[..., None]:
    """Compile ``out = x / sqrt(mean(x^2) + eps) * weight`` over rows of `size`.

    Returns:
        ``norm(x, weight, eps, first, last, out)``: x and out flat [T * size], weight float32 [size].
    """

    @njit(fastmath=FAST, nogil=True, error_model="numpy", boundscheck=False, cache=True)
    def norm(x: Any, weight: Any, eps: Any, first: Any, last: Any, out: Any) -> None:
        for row in range(first, last):
            source, target = x[row * size : (row + 1) * size], out[row * size : (row + 1) * size]
            square = np.float32(0)
            for i in range(size):
                value = load(source, i)
                square += value * value
            inverse = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
            for i in range(size):
                store(target, i, load(source, i) * inverse * weight[i])

    return norm


@lru_cache
def add_rms_norm(*, size: int) -> Callable[..., None]:
    """Compile ``residual += x; out = rms_norm(residual)`` over rows of `size`.

    Returns:
        ``norm(x, residual, weight, eps, first, last, out)``: x, residual and out flat [T * size], weight float32 [size].
    """

    @njit(fastmath=FAST, nogil=True, error_model="numpy", boundscheck=False, cache=True)
    def norm(x: Any, residual: Any, weight: Any, eps: Any, first: Any, last: Any, out: Any) -> None:
        for row in range(first, last):
            added, target = x[row * size : (row + 1) * size], out[row * size : (row + 1) * size]
            total = residual[row * size : (row + 1) * size]
            for i in range(size):
                store(total, i, load(total, i) + load(added, i))
            square = np.float32(0)
            for i in range(size):
                value = load(total, i)
                square += value * value
            inverse = np.float32(1) / np.sqrt(square / np.float32(size) + eps)
            for i in range(size):
                store(target, i, load(total, i) * inverse * weight[i])

    return norm


@lru_cache
def silu_mul(*, size: int) -> Callable[..., None]:
    """Compile ``out = gate / (1 + exp(-gate)) * up`` over rows of [gate(size) | up(size)].

    Returns:
        ``activate(gate_up, first, last, out)``: gate_up flat [T * 2 * size], out flat [T * size].
    """

    @njit(fastmath=FAST, nogil=True, error_model="numpy", boundscheck=False, cache=True)
    def activate(gate_up: Any, first: Any, last: Any, out: Any) -> None:
        exponent_bits = np.empty(size, np.int32)
        exponent = exponent_bits.view(np.float32)
        mantissa = np.empty(size, np.float32)
        # Rows are sliced, not indexed: a slice's indices are known not to be negative, so loops over it vectorize.
        for row in range(first, last):
            gate = gate_up[2 * row * size : (2 * row + 1) * size]
            up = gate_up[(2 * row + 1) * size : (2 * row + 2) * size]
            target = out[row * size : (row + 1) * size]
            for i in range(size):
                # exp(-gate) as a power of 2, clamped where float32 would overflow.
                x = load(gate, i) * np.float32(-1.4426950408889634)
                x = min(max(x, np.float32(-126.0)), np.float32(126.0))
                mantissa[i], exponent_bits[i] = exp2_parts(x)
            for i in range(size):
                value = load(gate, i) / (np.float32(1) + mantissa[i] * exponent[i])
                store(target, i, value * load(up, i))

    return activate
