"""Matrix products: right in every shape and form, and a row's bits never depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from octavo_kernels.activation import silu_mul
from octavo_kernels.heuristics import INTERPRETER
from octavo_kernels.launch import interpreted
from octavo_kernels.matmul import launch_product, matmul, matmul_add, matmul_silu
from octavo_kernels.matmul_tiles import ProductTile, exact_parts, exact_tile, fast_tile, form_sizes, product_parts
from unit.kernels.paged_batch import DEVICE

TILE = ProductTile(rows=16, columns=32, depth=32, warps=4, stages=2)
FORMS = {
    "pointers": replace(TILE, x_tma=False, w_tma=False),
    "tma": TILE,
    "tma for weights": replace(TILE, x_tma=False),
    "swapped": replace(TILE, swapped=True),
    "swapped pointers": replace(TILE, swapped=True, x_tma=False, w_tma=False),
    "persistent": replace(TILE, persistent=True),
    "persistent pointers": replace(TILE, persistent=True, x_tma=False, w_tma=False, group=2),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def whole(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Small whole numbers: their sums have no rounding error, so only the places of rounding can make a difference.

    (The interpreter multiplies with a library that sums in whatever order it likes; GPUs have a suite of their own.)
    """
    return torch.randint(-6, 7, shape).to(DEVICE, dtype)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def assert_product(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with an fp64 result, relative to its size."""
    error = (got.double() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[got.dtype], error


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_product_equals_fp64_in_every_type(dtype, with_bias, exact) -> None:
    x, w = random(5, 96, dtype=dtype), random(40, 96, dtype=dtype)
    bias = random(40, dtype=dtype) if with_bias else None
    out = empty(5, 40, dtype=dtype)
    matmul(x, w, bias, out, exact=exact)
    assert_product(out, x.double() @ w.double().T + (bias.double() if with_bias else 0))


@pytest.mark.parametrize("tile", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 32, 32), (16, 1, 48), (17, 33, 17), (33, 70, 68)])
def test_edges_of_any_size_are_right_in_every_form(tile, rows, columns, depth) -> None:
    x, w, bias = random(rows, depth), random(columns, depth), random(columns)
    out = empty(rows, columns)
    launch_product(tile, x, w, bias, None, out, gated=False)
    assert_product(out, x.double() @ w.double().T + bias.double())


@pytest.mark.parametrize("tile", FORMS.values(), ids=FORMS)
def test_rows_beyond_the_last_are_neither_read_nor_written(tile) -> None:
    x, w = random(9, 32), random(40, 32)
    x[5:] = torch.nan
    w[37:] = torch.nan
    out = empty(9, 40)
    launch_product(tile, x[:5], w[:37], None, None, out[:5, :37], gated=False)
    assert_product(out[:5, :37], x[:5].double() @ w[:37].double().T)
    assert out[5:].isnan().all()
    assert out[:, 37:].isnan().all()


@pytest.mark.parametrize("tile", FORMS.values(), ids=FORMS)
def test_gated_product_is_bit_by_bit_a_product_then_silu_mul(tile) -> None:
    x, w, bias = whole(19, 160), whole(2 * 36, 160) / 64, whole(2 * 36) / 64
    gate_up, out, expected = (empty(19, columns, dtype=torch.float16) for columns in (72, 36, 36))
    launch_product(tile, x, w, bias, None, gate_up, gated=False)
    silu_mul(gate_up, expected)
    launch_product(tile, x, w, bias, None, out, gated=True)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("tile", FORMS.values(), ids=FORMS)
def test_product_added_to_the_residual_is_bit_by_bit_a_product_then_an_addition(tile) -> None:
    x, w, residual = whole(19, 160), whole(36, 160), random(19, 36, dtype=torch.float16)
    product, out = empty(19, 36, dtype=torch.float16), residual.clone()
    launch_product(tile, x, w, None, None, product, gated=False)
    launch_product(tile, x, w, None, out, out, gated=False)
    assert torch.equal(out, residual + product)


def test_public_forms_agree_with_the_plain_product() -> None:
    x, w, residual = whole(7, 48), whole(64, 48) / 64, random(7, 64, dtype=torch.float16)
    product, gated, expected = (empty(7, columns, dtype=torch.float16) for columns in (64, 32, 32))
    total = residual.clone()
    matmul(x, w, None, product, exact=True)
    matmul_add(x, w, None, total, exact=True)
    matmul_silu(x, w, None, None, gated, exact=True)
    silu_mul(product, expected)
    assert torch.equal(total, residual + product)
    assert torch.equal(gated, expected)


@pytest.mark.skipif(not interpreted(), reason="GPUs have a suite of their own in tests/gpu")
def test_a_row_has_the_same_bits_alone_and_in_any_batch() -> None:
    x, w, together = random(80, 96), random(48, 96), empty(80, 48)
    matmul(x, w, None, together, exact=True)
    for rows in (1, 3, 16, 17, 33, 64, 65):
        out = empty(rows, 48)
        matmul(x[:rows], w, None, out, exact=True)
        assert torch.equal(out, together[:rows])


def test_rows_may_be_strided_and_out_may_be_a_view() -> None:
    x, w, out = random(6, 3, 40)[:, 1], random(24, 50)[:, :40], empty(6, 80)
    matmul(x, w, None, out[:, 8:32], exact=True)
    assert_product(out[:, 8:32], x.double() @ w.double().T)
    assert out[:, :8].isnan().all()
    assert out[:, 32:].isnan().all()


def test_no_rows_are_no_work() -> None:
    matmul(empty(0, 16), random(8, 16), None, empty(0, 8), exact=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": (8, 12)}, r"w: shape \(8, 12\), expected \(8, 16\)"),
        ({"out": (4, 9)}, r"out: shape \(4, 9\), expected \(4, 8\)"),
        ({"bias": (9,)}, r"bias: shape \(9,\), expected \(8,\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message) -> None:
    shapes = {"x": (4, 16), "w": (8, 16), "bias": (8,), "out": (4, 8)} | change
    with pytest.raises(ValueError, match=message):
        matmul(*(torch.zeros(shape) for shape in shapes.values()), exact=True)


def test_a_gated_weight_has_two_halves() -> None:
    with pytest.raises(ValueError, match="expected \\[2 I, K\\]"):
        matmul_silu(torch.zeros(4, 16), torch.zeros(7, 16), None, None, torch.zeros(4, 3), exact=True)


@pytest.mark.parametrize("arch", [INTERPRETER, 80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
def test_every_shape_has_an_exact_tile_of_powers_of_two(arch, dtype, gated) -> None:
    for rows in (1, 16, 17, 64, 65, 1024, 100_000):
        for columns in (1, 1024, 151936):
            tile = exact_tile(arch, dtype, rows, columns, 132, gated=gated)
            assert all(size & (size - 1) == 0 for size in (tile.rows, tile.columns, tile.depth, tile.warps))


def test_few_rows_read_the_weight_once_or_twice() -> None:
    for rows in range(1, 65):
        for columns in (1024, 4096, 6144, 28672):
            assert rows <= 2 * exact_tile(90, torch.bfloat16, rows, columns, 132, gated=False).rows


def test_tiles_for_many_rows_fill_the_multiprocessors() -> None:
    small = exact_tile(90, torch.bfloat16, 128, 4096, 132, gated=False)
    large = exact_tile(90, torch.bfloat16, 8192, 4096, 132, gated=False)
    assert small.rows * small.columns == 64 * 64  # 128 programs
    assert large.rows * large.columns == 128 * 256


def test_rows_beyond_whole_waves_are_left_to_smaller_tiles() -> None:
    """4096 columns are 16 large tiles wide: 8 rows of them are a wave of 132 multiprocessors."""

    def parts(rows: int, columns: int, depth: int, *, gated: bool = False) -> list[int]:
        chosen = exact_parts(90, torch.bfloat16, rows, columns, depth, 132, gated=gated)
        for count, tile in chosen:
            assert tile == exact_tile(90, torch.bfloat16, count, columns, 132, gated=gated), "no form of its own"
        return [count for count, _ in chosen]

    assert parts(1280, 4096, 14336) == [1024, 256]
    assert parts(2304, 4096, 4096) == [2048, 256]
    assert parts(1024, 4096, 4096) == [1024]
    assert parts(1536, 4096, 4096) == [1536], "half a wave of large tiles is as fast"
    assert parts(1280, 1024, 3072) == [1280], "less than a wave"
    assert parts(1280, 28672, 4096, gated=True) == [1280], "one of nine waves"
    assert parts(1280, 4096, 64) == [1280], "the second launch would take longer"
    for rows in range(1, 9000, 7):
        for columns, depth in ((6144, 4096), (4096, 14336), (1024, 2048), (151936, 1024)):
            assert sum(parts(rows, columns, depth)) == rows


@pytest.mark.parametrize(("arch", "dtype"), [(INTERPRETER, torch.bfloat16), (80, torch.bfloat16), (90, torch.float32)])
def test_other_hardware_and_types_have_one_tile(arch, dtype) -> None:
    assert len(exact_parts(arch, dtype, 1280, 4096, 4096, 132, gated=False)) == 1


def test_fast_products_leave_many_rows_to_the_library() -> None:
    assert fast_tile(90, torch.bfloat16, 64, 4096, 132, gated=False) is not None
    assert fast_tile(90, torch.bfloat16, 8192, 6144, 132, gated=False) is None
    assert fast_tile(90, torch.bfloat16, 8192, 4096, 132, gated=False) is not None, "where ours was measured faster"
    assert fast_tile(90, torch.float32, 1, 4096, 132, gated=False) is None
    assert fast_tile(90, torch.bfloat16, 200, 6144, 132, gated=False) is None
    assert fast_tile(90, torch.bfloat16, 200, 128_256, 132, gated=False) is not None, "meets any number of rows"


@pytest.mark.parametrize("exact", [False, True])
def test_a_few_sizes_take_every_tile_that_is_ever_chosen(exact) -> None:
    shapes = [(4096, 4096, False), (4096, 14336, False), (6144, 4096, False), (28672, 4096, True)]
    sizes = form_sizes(90, torch.bfloat16, 3500, shapes, 132, exact=exact)
    assert len(sizes) < 50
    for columns, depth, gated in shapes:

        def tiles(rows: int, columns: int = columns, depth: int = depth, gated: bool = gated) -> set[ProductTile]:
            parts = product_parts(90, torch.bfloat16, rows, columns, depth, 132, exact=exact, gated=gated)
            return {tile for _, tile in parts}

        taken, chosen = (set().union(*map(tiles, each)) for each in (sizes, range(1, 3501)))
        assert taken == chosen
