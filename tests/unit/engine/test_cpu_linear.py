from __future__ import annotations

import pytest
import torch
from octavo_engine.backends import cpu_linear
from octavo_engine.backends.cpu_linear import LinearPacker, NotExact, PackedLinear, apply
from octavo_engine.models.weights import Linear


def test_packed_product_equals_plain_product() -> None:
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(7, 32)
    for exact in (True, False):
        packed = LinearPacker(torch.float32, exact=exact, tiles=False).pack(Linear(weight=weight, bias=bias))
        torch.testing.assert_close(apply(x, packed), torch.nn.functional.linear(x, weight, bias))
        torch.testing.assert_close(apply(x[:1], packed), torch.nn.functional.linear(x[:1], weight, bias))


def test_tiles_give_every_row_once() -> None:
    weight, x = torch.randn(16, 8), torch.randn(70, 8)
    packed = LinearPacker(torch.float32, exact=True, tiles=True).pack(Linear(weight=weight))
    tiled = PackedLinear(packed=packed.packed, single=None, bias=None, tile_rows=32)
    torch.testing.assert_close(apply(x, tiled), x @ weight.T)


def test_exact_refuses_products_that_depend_on_the_row_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is not exact is found by the probe, not believed."""
    honest = cpu_linear._product

    def disturbed(x: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
        return honest(x, linear) + x.shape[0] * 1e-6

    monkeypatch.setattr(cpu_linear, "_product", disturbed)
    with pytest.raises(NotExact, match="fast"):
        LinearPacker(torch.float32, exact=True, tiles=False).pack(Linear(weight=torch.randn(16, 8)))
    # Tiles of one size hide what depends on the number of rows.
    assert LinearPacker(torch.float32, exact=True, tiles=True).pack(Linear(weight=torch.randn(16, 8))).tile_rows == 32
