from __future__ import annotations

import pytest
import torch
from octavo_engine.backends import cpu_linear
from octavo_engine.backends.cpu_linear import CpuLinear
from octavo_engine.backends.ops import NotExact
from octavo_engine.backends.row_threads import RowThreads
from octavo_engine.models.weights import Linear


def linear(*, exact: bool = True, tiles: bool = False, threads: int = 1) -> CpuLinear:
    return CpuLinear(torch.float32, exact=exact, tiles=tiles, threads=RowThreads(threads))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(128, 72), (128, 1032), (50, 30)], ids=str)  # streamed, in two chains, oneDNN only
@pytest.mark.parametrize("exact", [True, False])
def test_every_row_count_gives_the_plain_product(stored: torch.dtype, shape: tuple[int, int], exact: bool) -> None:
    weight, bias = torch.randn(shape).to(stored), torch.randn(shape[0])
    products = linear(exact=exact, threads=2)
    packed = products.pack(Linear(weight=weight, bias=bias))
    for rows in (1, 3, 16, 17, 70):
        x = torch.randn(rows, shape[1])
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        torch.testing.assert_close(products.apply(x, packed).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(192, 576), (64, 1536), (70, 48)], ids=str)
def test_exact_products_give_a_row_the_same_bits_among_any_others(shape: tuple[int, int]) -> None:
    products = linear()
    packed = products.pack(Linear(weight=torch.randn(shape).bfloat16()))
    x = torch.randn(100, shape[1])
    whole = products.apply(x, packed)
    for first, last in ((0, 1), (99, 100), (40, 45), (10, 26), (10, 27), (3, 90)):
        assert torch.equal(products.apply(x[first:last].contiguous(), packed), whole[first:last])


def test_tiles_give_every_row_once() -> None:
    products = linear(tiles=True)
    weight, x = torch.randn(16, 8), torch.randn(70, 8)
    packed = products.pack(Linear(weight=weight))
    object.__setattr__(packed, "tile_rows", 32)
    torch.testing.assert_close(products.apply(x, packed), x @ weight.T)


def test_a_row_alone_gets_company_where_the_library_would_treat_it_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = cpu_linear._product

    def particular(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return honest(x, packed) + (1e-3 if len(x) == 1 else 0.0)

    monkeypatch.setattr(cpu_linear, "_product", particular)
    products = linear()
    packed = products.pack(Linear(weight=torch.randn(50, 30)))
    x = torch.randn(5, 30)
    assert (packed.tile_rows, packed.least_rows) == (0, 2)
    assert torch.equal(products.apply(x[2:3], packed), products.apply(x, packed)[2:3])


def test_an_order_that_rounding_to_bfloat16_mostly_hides_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A row alone is summed in two chains."""
        parts = (x, weight) if len(x) > 1 else (x[:, :1000], weight[:, :1000])
        total = parts[0].float() @ parts[1].float().T
        return (total if len(x) > 1 else total + x[:, 1000:].float() @ weight[:, 1000:].float().T).bfloat16()

    monkeypatch.setattr(cpu_linear, "_pack", lambda weight: weight)
    monkeypatch.setattr(cpu_linear, "_product", split)
    products = CpuLinear(torch.bfloat16, exact=True, tiles=False, threads=RowThreads(1))
    packed = products.pack(Linear(weight=torch.randn(4, 2048).bfloat16()))
    assert packed.least_rows == 2


def test_exact_refuses_products_that_depend_on_the_row_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is not exact is found by the probe, not believed."""
    honest = cpu_linear._product

    def disturbed(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return honest(x, packed) + x.shape[0] * 1e-6

    monkeypatch.setattr(cpu_linear, "_product", disturbed)
    weight = Linear(weight=torch.randn(64, 8))
    with pytest.raises(NotExact, match="fast"):
        linear().pack(weight)
    # Tiles of one size hide what depends on the number of rows; the streamed product, which has other bits, is left out.
    packed = linear(tiles=True).pack(weight)
    assert packed.tile_rows == 32
    assert packed.streamed is None


def test_helper_threads_pass_errors_on() -> None:
    threads = RowThreads(2)

    def work(first: int, _last: int) -> None:
        if first > 0:
            raise ValueError("second half")

    with pytest.raises(ValueError, match="second half"):
        threads.run(work, 10, 1)
    threads.run(lambda _first, _last: None, 10, 1)  # still usable
    threads.close()
