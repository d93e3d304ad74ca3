"""The Numba kernels of the CPU give what the plain-PyTorch reference gives, row by row, whatever the range of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from octavo_kernels import reference
from octavo_kernels.cpu.attention import attention
from octavo_kernels.cpu.rope_write import rope_write
from octavo_kernels.cpu.rows import add_rms_norm, rms_norm, silu_mul

TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-3)], ids=str)
LAYERS, PAGES, PAGE = 2, 24, 16


def flat(x: torch.Tensor) -> np.ndarray[Any, Any]:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy().reshape(-1)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def pool_of(kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(PAGES, LAYERS, 2, kv_heads, PAGE, head_dim).to(dtype)


@TYPES
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window"), [(9, 3, 64, 0), (5, 1, 32, 20), (4, 4, 80, 1), (2, 1, 16, 500)]
)
def test_attention_equals_reference(
    dtype: torch.dtype, tolerance: float, heads: int, kv_heads: int, head_dim: int, window: int
) -> None:
    layer = 1
    pool = pool_of(kv_heads, head_dim, dtype)
    lengths = [1, PAGE - 1, PAGE, PAGE + 1, 70, 8 * PAGE]
    tables = torch.stack([torch.randperm(PAGES)[:8] for _ in lengths]).to(torch.int32)
    tables[4] = tables[3]  # two sequences share pages
    q = torch.randn(len(lengths), heads, head_dim).to(dtype)
    out = torch.full_like(q, torch.nan)
    attend = attention(head_dim=head_dim, num_heads=heads, num_kv_heads=kv_heads, page_size=PAGE, window=window)

    def run(first: int, last: int, target: torch.Tensor) -> None:
        attend(
            flat(q), flat(pool), np.int64(layer * pool.stride(1)), np.int64(layer * pool.stride(1) + pool.stride(2)),
            np.int64(pool.stride(0)), tables.numpy(), np.arange(len(lengths), dtype=np.int32),
            np.array(lengths, dtype=np.int64) - 1, first, last, np.float32(head_dim**-0.5), flat(target),
        )  # fmt: skip

    run(0, len(lengths), out)
    expected = torch.empty_like(q)
    size = len(lengths) * heads * 64 * (head_dim + 1)
    reference.paged_decode(
        q, pool[:, layer, 0], pool[:, layer, 1], tables, torch.tensor(lengths, dtype=torch.int32), expected,
        torch.empty(size), scale=head_dim**-0.5, window=window,
    )  # fmt: skip
    assert error(out, expected) < tolerance
    for row in range(len(lengths)):  # alone, each row gives the same bits
        single = torch.full_like(q, torch.nan)
        run(row, row + 1, single)
        assert torch.equal(single[row], out[row])


def test_attention_ignores_what_lies_beyond_the_sequence() -> None:
    pool = pool_of(1, 32, torch.float32)
    pool[3, :, :, :, 5:] = torch.nan
    q, out = torch.randn(1, 2, 32), torch.empty(1, 2, 32)
    attend = attention(head_dim=32, num_heads=2, num_kv_heads=1, page_size=PAGE)
    attend(
        flat(q), flat(pool), np.int64(0), np.int64(pool.stride(2)), np.int64(pool.stride(0)),
        np.array([[2, 3, 9]], np.int32), np.zeros(1, np.int32), np.array([PAGE + 4]), 0, 1, np.float32(1), flat(out),
    )  # fmt: skip
    assert out.isfinite().all()


@TYPES
@pytest.mark.parametrize("qk_norm", [False, True])
def test_rope_write_equals_reference(dtype: torch.dtype, tolerance: float, qk_norm: bool) -> None:
    heads, kv_heads, head_dim, tokens, layer = 6, 2, 32, 9, 1
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(dtype)
    positions = torch.randint(0, 100, (tokens,))
    slots = torch.randperm(PAGES * PAGE)[:tokens]
    angles = torch.rand(100, head_dim // 2) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    weights = [(torch.rand(head_dim) + 0.5).to(dtype) for _ in range(2)] if qk_norm else [None, None]
    pool = pool_of(kv_heads, head_dim, dtype)
    expected_pool = pool.clone()
    q, expected_q = torch.empty(tokens, heads, head_dim, dtype=dtype), torch.empty(tokens, heads, head_dim, dtype=dtype)
    reference.rope_qknorm_write(
        qkv, positions, slots, cos_sin, expected_pool[:, layer, 0], expected_pool[:, layer, 1], expected_q,
        weights[0], weights[1], 1e-6,
    )  # fmt: skip
    write = rope_write(head_dim=head_dim, num_heads=heads, num_kv_heads=kv_heads, page_size=PAGE, qk_norm=qk_norm)
    factors = [np.ones(1, np.float32) if weight is None else weight.float().numpy() for weight in weights]
    write(
        flat(qkv), positions.numpy(), slots.numpy(), flat(cos_sin), *factors, np.float32(1e-6), flat(pool),
        np.int64(layer * pool.stride(1)), np.int64(layer * pool.stride(1) + pool.stride(2)),
        np.int64(pool.stride(0)), 0, tokens, flat(q),
    )  # fmt: skip
    assert error(q, expected_q) < tolerance
    assert error(pool, expected_pool) < tolerance
    assert torch.equal(pool[:, 0], expected_pool[:, 0])  # the other layer is untouched


@TYPES
def test_norms_equal_reference(dtype: torch.dtype, tolerance: float) -> None:
    x, weight = torch.randn(5, 96).to(dtype), (torch.rand(96) + 0.5).to(dtype)
    out, expected = torch.empty_like(x), torch.empty_like(x)
    rms_norm(size=96)(flat(x), weight.float().numpy(), np.float32(1e-5), 0, 5, flat(out))
    reference.rmsnorm(x, weight, expected, 1e-5)
    assert error(out, expected) < tolerance
    residual = torch.randn(5, 96).to(dtype)
    expected_residual = residual.clone()
    add_rms_norm(size=96)(flat(x), flat(residual), weight.float().numpy(), np.float32(1e-5), 0, 5, flat(out))
    reference.add_rmsnorm(x, expected_residual, weight, expected, 1e-5)
    assert torch.equal(residual, expected_residual)
    assert error(out, expected) < tolerance


@TYPES
def test_silu_mul_equals_reference_and_survives_extremes(dtype: torch.dtype, tolerance: float) -> None:
    gate_up = (torch.randn(4, 2 * 70) * 4).to(dtype)
    gate_up[0, :4] = torch.tensor([200.0, -200.0, 0.0, -87.5]).to(dtype)
    out, expected = torch.empty(4, 70, dtype=dtype), torch.empty(4, 70, dtype=dtype)
    silu_mul(size=70)(flat(gate_up), 0, 4, flat(out))
    reference.silu_mul(gate_up, expected)
    assert out.isfinite().all()
    assert error(out, expected) < tolerance
