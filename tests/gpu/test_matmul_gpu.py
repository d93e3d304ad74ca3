"""Matrix products on a GPU: rows keep their bits whatever the number of rows, and errors are no larger than cuBLAS's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from octavo_kernels.activation import silu_mul
from octavo_kernels.matmul import launch_product, matmul, matmul_add, matmul_silu
from octavo_kernels.matmul_tiles import FEW_ROWS, MANY_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),  # the first use of a tile compiles it
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BF16 = torch.bfloat16
ROWS = (1, 3, 8, 16, 33, 64, 65, 128, 200, 256, 1000, 1152, 1280, 2500, 4096)
# (N, K): Llama 8B and Qwen3 0.6B, and one that no tile divides.
SHAPES = [(6144, 4096), (4096, 14336), (28672, 4096), (1024, 3072), (4096, 1024), (1000, 1048)]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(20)


def random(*shape: int, scale: float = 1.0, dtype: torch.dtype = BF16) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.full(shape, torch.nan, device="cuda", dtype=dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    width = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(width), b.view(width))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_every_number_of_rows(shape) -> None:
    columns, depth = shape
    x, w, bias = random(max(ROWS), depth), random(columns, depth, scale=0.02), random(columns)
    together = empty(len(x), columns)
    matmul(x, w, bias, together, exact=True)
    for rows in ROWS:
        for first in {0, len(x) - rows}:
            out = empty(rows, columns)
            matmul(x[first : first + rows], w, bias, out, exact=True)
            assert same_bits(out, together[first : first + rows]), (rows, first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_row_has_the_same_bits_in_other_types(dtype) -> None:
    x, w = random(300, 512, dtype=dtype), random(384, 512, dtype=dtype)
    together = empty(300, 384, dtype=dtype)
    matmul(x, w, None, together, exact=True)
    for rows in (1, 16, 17, 64, 65, 200):
        out = empty(rows, 384, dtype=dtype)
        matmul(x[:rows], w, None, out, exact=True)
        assert same_bits(out, together[:rows]), rows


def test_every_exact_tile_gives_the_same_bits() -> None:
    x, w = random(64, 4096), random(512, 4096, scale=0.02)
    tiles = {entry.tile for entry in FEW_ROWS} | {candidate.tile for candidate in MANY_ROWS}
    products = []
    for tile in tiles:
        for form in (tile, replace(tile, x_tma=False), replace(tile, x_tma=False, w_tma=False)):
            out = empty(16, 512)
            launch_product(form, x[:16], w, None, None, out, gated=False)
            products.append(out)
    assert all(same_bits(products[0], other) for other in products[1:])


def test_every_gated_tile_gives_the_same_bits() -> None:
    x, w, expected = random(200, 1024), random(6144, 1024, scale=0.05), empty(200, 3072)
    product = empty(200, 6144)
    matmul(x, w, None, product, exact=True)
    silu_mul(product, expected)
    halves = {replace(candidate.tile, columns=candidate.tile.columns // 2) for candidate in MANY_ROWS}
    for tile in {entry.gated_tile for entry in FEW_ROWS} | halves:
        out = empty(200, 3072)
        launch_product(tile, x, w, None, None, out, gated=True)
        assert same_bits(out, expected), tile


def test_a_product_that_ran_once_can_be_captured() -> None:
    x, w = random(200, 1024), random(4096, 1024)
    matmul_add(x, w, None, empty(200, 4096), exact=True)
    total, graph, expected = torch.zeros(200, 4096, device="cuda", dtype=BF16), torch.cuda.CUDAGraph(), empty(200, 4096)
    with torch.cuda.graph(graph):
        matmul_add(x, w, None, total, exact=True)
    graph.replay()
    matmul(x, w, None, expected, exact=True)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("rows", [1, 17, 64])
def test_kernels_that_start_early_wait_for_what_they_read(rows: int) -> None:
    """Each product reads what the one before wrote, and overwrites what the one before that read."""
    weights = [random(1024, 1024, scale=1024**-0.5) for _ in range(40)]
    x = random(rows, 1024)

    def chain(after_each: Callable[[], object]) -> torch.Tensor:
        a, b = x.clone(), torch.empty_like(x)
        for w in weights:
            matmul(a, w, None, b, exact=True)
            after_each()
            a, b = b, a
        return a

    expected = chain(torch.cuda.synchronize)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = chain(lambda: None)
    for _ in range(20):
        graph.replay()
        assert same_bits(got, expected)
    assert same_bits(chain(lambda: None), expected)


@pytest.mark.parametrize("rows", [1, 64, 200, 1000])
def test_fused_forms_have_the_bits_of_separate_kernels(rows: int) -> None:
    x, w, residual = random(rows, 1024), random(6144, 1024, scale=0.05), random(rows, 6144)
    product, gated, expected, total = empty(rows, 6144), empty(rows, 3072), empty(rows, 3072), residual.clone()
    matmul(x, w, None, product, exact=True)
    silu_mul(product, expected)
    matmul_silu(x, w, None, None, gated, exact=True)
    matmul_add(x, w, None, total, exact=True)
    assert same_bits(gated, expected)
    assert same_bits(total, residual + product)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_the_error_is_no_larger_than_that_of_cublas(rows: int, exact: bool) -> None:
    for columns, depth in SHAPES[:4]:
        x, w = random(rows, depth), random(columns, depth, scale=0.02)
        truth = x.double() @ w.double().T
        out = empty(rows, columns)
        matmul(x, w, None, out, exact=exact)
        error, library_error = ((y.double() - truth).norm() for y in (out, torch.nn.functional.linear(x, w)))
        assert error <= 1.1 * library_error, (columns, depth)


@pytest.mark.parametrize("exact", [True, False])
def test_fp32_is_not_computed_in_tf32(exact: bool) -> None:
    x, w = random(70, 512, dtype=torch.float32), random(96, 512, dtype=torch.float32)
    out, truth = empty(70, 96, dtype=torch.float32), x.double() @ w.double().T
    matmul(x, w, None, out, exact=exact)
    assert (out.double() - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("rows", [1, 200, 4096])
def test_a_captured_product_can_be_replayed(rows: int) -> None:
    x, w, out, expected = random(rows, 1024), random(4096, 1024), empty(rows, 4096), empty(rows, 4096)
    matmul(x, w, None, expected, exact=True)  # compiles: that cannot happen in a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matmul(x, w, None, out, exact=True)
    out.fill_(torch.nan)
    graph.replay()
    assert same_bits(out, expected)


def test_the_same_product_twenty_times_has_the_same_bits() -> None:
    x, w, first = random(48, 4096), random(4096, 4096), empty(48, 4096)
    for exact in (True, False):
        matmul(x, w, None, first, exact=exact)
        for _ in range(20):
            out = empty(48, 4096)
            matmul(x, w, None, out, exact=exact)
            assert same_bits(out, first)


def test_offsets_beyond_two_to_the_31_are_right() -> None:
    rows, columns, depth = 70_000, 32_000, 32  # 2.2e9 outputs
    x, w = random(rows, depth), random(columns, depth)
    out = torch.empty(rows, columns, device="cuda", dtype=BF16)
    matmul(x, w, None, out, exact=True)
    torch.testing.assert_close(out[-3:], torch.nn.functional.linear(x[-3:], w), atol=0.1, rtol=0.02)
