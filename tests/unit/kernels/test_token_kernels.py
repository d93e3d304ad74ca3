"""The kernels around attention: norms, activation, rope with the write to pages, and page copies."""

from __future__ import annotations

import pytest
import torch
from octavo_kernels import activation, copy_pages, norm, reference, rope_write
from unit.kernels.paged_batch import DEVICE, ON_GPU, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# A last-bit difference before a rounding step doubles it.
ROUNDED = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def assert_rounded_alike(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=ROUNDED[got.dtype], rtol=ROUNDED[got.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 100, 576, 4096])
def test_rmsnorm_equals_reference(width: int, dtype: torch.dtype) -> None:
    x, weight = random(5, width + 3, dtype=dtype)[:, :width], random(width, dtype=dtype)
    out, expected = (torch.full((5, width), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
    norm.rmsnorm(x, weight, out, 1e-5)
    reference.rmsnorm(x, weight, expected, 1e-5)
    assert_rounded_alike(out, expected)
    if dtype == torch.float32:
        torch.testing.assert_close(out, torch.nn.functional.rms_norm(x, (width,), weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rmsnorm_equals_reference(dtype: torch.dtype) -> None:
    x, residual, weight = random(5, 96, dtype=dtype), random(5, 96, dtype=dtype), random(96, dtype=dtype)
    expected_residual, expected = residual.clone(), x.clone()
    norm.add_rmsnorm(x, residual, weight, x, 1e-5)
    reference.add_rmsnorm(expected, expected_residual, weight, expected, 1e-5)
    assert_rounded_alike(residual, expected_residual)
    assert_rounded_alike(x, expected)


def test_rmsnorm_row_alone_equals_row_in_a_batch_bitwise() -> None:
    x, weight = random(7, 300), random(300)
    out, alone = torch.empty_like(x), torch.empty(1, 300, device=DEVICE)
    norm.rmsnorm(x, weight, out, 1e-6)
    norm.rmsnorm(x[3:4], weight, alone, 1e-6)
    assert torch.equal(alone[0], out[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 96, 1536])
def test_silu_mul_equals_reference(width: int, dtype: torch.dtype) -> None:
    gate_up = random(3, 2 * width, dtype=dtype) * 4
    out, expected = (torch.full((3, width), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
    activation.silu_mul(gate_up, out)
    reference.silu_mul(gate_up, expected)
    assert_rounded_alike(out, expected)


ROPE_SHAPES = [
    # head_dim, group, kv_heads, page_size, norm, dtype
    (32, 1, 3, 16, False, torch.float32),
    (64, 4, 2, 32, True, torch.float32),
    (80, 5, 2, 16, True, torch.float32),
    (128, 7, 1, 64, False, torch.float16),
    (128, 8, 2, 16, True, torch.bfloat16),
]


@pytest.mark.parametrize("shape", ROPE_SHAPES, ids=str)
def test_rope_write_equals_reference(shape) -> None:
    head_dim, group, kv_heads, page_size, normed, dtype = shape
    num_tokens, width = 5, (group + 2) * kv_heads * head_dim
    qkv = random(num_tokens, width + 16, dtype=dtype)[:, :width]
    positions = torch.tensor([0, 9, 3, 0, 49], device=DEVICE)
    slots = torch.tensor([page_size - 1, 2 * page_size, 7, -1, 3 * page_size + 1], device=DEVICE)
    angles = torch.arange(50.0)[:, None] * torch.rand(head_dim // 2)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1).to(DEVICE)
    weights = [random(head_dim, dtype=dtype) if normed else None for _ in range(2)]
    pools = [torch.full((4, 2, 2, kv_heads, page_size, head_dim), 9.0, dtype=dtype, device=DEVICE) for _ in range(2)]
    outs = [torch.full((num_tokens, group * kv_heads, head_dim), torch.nan, dtype=dtype, device=DEVICE) for _ in "ab"]
    for op, pool, out in zip((rope_write, reference), pools, outs, strict=True):
        op.rope_qknorm_write(qkv, positions, slots, cos_sin, pool[:, 1, 0], pool[:, 1, 1], out, *weights, eps=1e-6)
    assert_close(outs[0], outs[1].double(), dtype)
    assert_close(pools[0], pools[1].double(), dtype)
    assert torch.equal(pools[0] == 9.0, pools[1] == 9.0)  # nothing but the slots was written
    value_offset = (group + 1) * kv_heads * head_dim
    value = qkv[4, value_offset:].view(kv_heads, head_dim)
    assert torch.equal(pools[0][3, 1, 1, :, 1], value)


def test_rope_gives_a_token_the_same_bits_beside_others() -> None:
    tokens, group, kv_heads, head_dim = 19, 2, 2, 32
    qkv, cos_sin = random(tokens, (group + 2) * kv_heads * head_dim), random(tokens, head_dim)
    positions, slots = torch.arange(tokens, device=DEVICE), torch.arange(tokens, device=DEVICE) + 3
    slots[4] = -1
    weights = [random(head_dim) for _ in range(2)]

    def rotated(chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        pool = torch.zeros(2, 1, 2, kv_heads, 16, head_dim, device=DEVICE)
        out = torch.full((len(qkv[chosen]), group * kv_heads, head_dim), torch.nan, device=DEVICE)
        rope_write.rope_qknorm_write(
            qkv[chosen], positions[chosen], slots[chosen], cos_sin, pool[:, 0, 0], pool[:, 0, 1], out, *weights
        )
        return out, pool

    out, pool = rotated(slice(None))
    assert pool.count_nonzero() == (tokens - 1) * 2 * kv_heads * head_dim
    total = torch.zeros_like(pool)
    for token in range(tokens):
        alone, written = rotated(slice(token, token + 1))
        assert torch.equal(alone[0], out[token])
        total += written
    assert torch.equal(total, pool)


def test_rope_at_position_zero_changes_nothing() -> None:
    qkv, cos_sin = random(1, 4 * 32), torch.cat([torch.ones(1, 16), torch.zeros(1, 16)], dim=-1).to(DEVICE)
    pool, out = torch.zeros(1, 1, 2, 1, 16, 32, device=DEVICE), torch.empty(1, 2, 32, device=DEVICE)
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    rope_write.rope_qknorm_write(qkv, zero, zero, cos_sin, pool[:, 0, 0], pool[:, 0, 1], out)
    assert torch.equal(out.flatten(), qkv[0, :64])
    assert torch.equal(pool[0, 0, :, 0, 0].flatten(), qkv[0, 64:])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_copy_pages_equals_reference(dtype: torch.dtype) -> None:
    pool = pages_of(dtype)
    src, dst = ids(1, -1, 3, 1), ids(7, 5, 0, 4)
    expected = pool.clone()
    copy_pages.copy_pages(pool, src, dst)
    reference.copy_pages(expected, src, dst)
    assert torch.equal(pool.view(torch.uint8), expected.view(torch.uint8))


def test_gather_then_scatter_restores_pages() -> None:
    pool = pages_of(torch.bfloat16)
    staging = torch.full((3, *pool.shape[1:]), 5.0, dtype=pool.dtype, device=DEVICE)
    expected = staging.clone()
    copy_pages.gather_pages(pool, ids(6, -1, 2), staging)
    reference.gather_pages(pool, ids(6, -1, 2), expected)
    assert torch.equal(staging, expected)
    restored, expected_pool = torch.zeros_like(pool), torch.zeros_like(pool)
    copy_pages.scatter_pages(staging, ids(6, -1, 2), restored)
    reference.scatter_pages(staging, ids(6, -1, 2), expected_pool)
    assert torch.equal(restored, expected_pool)
    assert torch.equal(restored[[2, 6]], pool[[2, 6]])


def pages_of(dtype: torch.dtype) -> torch.Tensor:
    layers = 32 if ON_GPU else 3
    return (torch.rand(8, layers, 2, 3, 16, 48) * 200).to(DEVICE, dtype)


def ids(*pages: int) -> torch.Tensor:
    return torch.tensor(pages, dtype=torch.int32, device=DEVICE)


def test_empty_inputs_launch_nothing() -> None:
    empty = torch.zeros(0, 8, device=DEVICE)
    norm.rmsnorm(empty, random(8), empty, 1e-6)
    activation.silu_mul(empty, torch.zeros(0, 4, device=DEVICE))
    copy_pages.copy_pages(pages_of(torch.float32), ids(), ids())


def test_launchers_name_the_argument_that_is_wrong() -> None:
    x, weight, pool = torch.zeros(2, 8), torch.zeros(8), torch.zeros(4, 1, 2, 1, 16, 32)
    with pytest.raises(ValueError, match="weight: shape"):
        norm.rmsnorm(x, weight[:4], x, 1e-6)
    with pytest.raises(ValueError, match="x: 1 axes"):
        norm.rmsnorm(weight, weight, weight, 1e-6)
    with pytest.raises(ValueError, match="residual: dtype"):
        norm.add_rmsnorm(x, x.half(), weight, x, 1e-6)
    with pytest.raises(ValueError, match="gate_up: shape"):
        activation.silu_mul(torch.zeros(2, 7), x)
    with pytest.raises(ValueError, match="out: shape"):
        activation.silu_mul(x, x)
    with pytest.raises(ValueError, match="dst: shape"):
        copy_pages.copy_pages(pool, torch.zeros(2, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match="kv: shape"):
        copy_pages.gather_pages(pool.mT, torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, 2, 1, 32, 16))
    with pytest.raises(ValueError, match="kv: 4 bytes a page"):
        copy_pages.copy_pages(torch.zeros(3, 1), torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    slots = torch.zeros(1, dtype=torch.int32)
    arguments = (torch.zeros(1, 128), slots.long(), slots, torch.zeros(1, 32), pool[:, 0, 0], pool[:, 0, 1])
    with pytest.raises(ValueError, match="slots: dtype"):
        rope_write.rope_qknorm_write(*arguments, torch.zeros(1, 2, 32))
