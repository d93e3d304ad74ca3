"""Matrix products on the CPU by oneDNN, with weights packed once, and the proof that a row never sees its neighbours.

In `exact` numerics a row of the result must be the same bits whatever the number of rows. oneDNN keeps one order along
K for all row counts with weights packed for many rows (it does not with weights packed for a single row), but nothing
promises it: so every shape is probed when it is loaded, and where the probe fails products run in tiles of a fixed
number of rows, which is exact by construction up to the row's place in the tile, and is probed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from octavo_engine.models.weights import Linear

_PACK_ROWS: Final = 32
_TILE_ROWS: Final = 32
_PROBED_ROWS: Final = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 64)


class NotExact(Exception):
    """This CPU's matrix products depend on the number of rows; `exact` numerics cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A packed weight.

    Attributes:
        packed: oneDNN's layout, or the plain [out, in] weight where oneDNN has none for the type.
        single: packed for one row; `fast` numerics only.
        bias: [out] or None.
        tile_rows: compute in tiles of this many rows; 0 computes all rows at once.
    """

    packed: torch.Tensor
    single: torch.Tensor | None
    bias: torch.Tensor | None
    tile_rows: int = 0


def bfloat16_is_fast() -> bool:
    """Tell whether oneDNN multiplies bfloat16 on this CPU; otherwise it runs at a tenth of float32's rate."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # torch has no public form


class LinearPacker:
    """Packs weights of one type; remembers what it found out about each shape.

    Args:
        dtype: type of weights and inputs.
        exact: rows must be independent of each other.
        tiles: fixed tiles may be used to get there, which multiply the cost of small batches.
    """

    def __init__(self, dtype: torch.dtype, *, exact: bool, tiles: bool) -> None:
        self._dtype = dtype
        self._exact = exact
        self._candidates = (0, _TILE_ROWS) if tiles else (0,)
        self._tile_rows: dict[torch.Size, int] = {}

    def pack(self, linear: Linear) -> PackedLinear:
        """Pack a weight.

        Raises:
            NotExact: `exact` was asked for and no way of computing this shape is independent of the row count.
        """
        weight = linear.weight.to(self._dtype).contiguous()
        bias = None if linear.bias is None else linear.bias.to(self._dtype)
        if self._dtype == torch.bfloat16 and not bfloat16_is_fast():
            packed = PackedLinear(packed=weight, single=None, bias=bias)
        else:
            reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001  # torch has no public form
            single = None if self._exact else reorder(weight, 1)
            packed = PackedLinear(packed=reorder(weight, _PACK_ROWS), single=single, bias=bias)
        if not self._exact:
            return packed
        if weight.shape not in self._tile_rows:
            self._tile_rows[weight.shape] = self._exact_tile(packed, weight.shape)
        return replace(packed, tile_rows=self._tile_rows[weight.shape])

    def _exact_tile(self, packed: PackedLinear, shape: torch.Size) -> int:
        for tile_rows in self._candidates:
            if _rows_are_independent(replace(packed, tile_rows=tile_rows), shape[1], self._dtype):
                return tile_rows
        raise NotExact(
            f"matrix products of shape {tuple(shape)} in {self._dtype} depend on the number of rows on this CPU: "
            "use --numerics fast"
        )


def apply(x: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
    """Return x [T, in] @ weight.T + bias: [T, out]."""
    rows, tile = x.shape[0], linear.tile_rows
    if not tile:
        return _product(x, linear)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -rows % tile))
    return torch.cat([_product(part, linear) for part in torch.split(padded, tile)])[:rows]


def _product(x: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
    weight = linear.single if linear.single is not None and x.shape[0] == 1 else linear.packed
    if weight.layout == torch._mkldnn:  # type: ignore[attr-defined]  # noqa: SLF001  # torch has no public form
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, linear.bias, "none", [], "")  # noqa: SLF001
        return result
    return torch.nn.functional.linear(x, weight, linear.bias)


def _rows_are_independent(linear: PackedLinear, width: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(_PROBED_ROWS), width, generator=generator).to(dtype)
    reference = apply(x, linear)
    for rows in _PROBED_ROWS:
        head, tail = apply(x[:rows].contiguous(), linear), apply(x[-rows:].contiguous(), linear)
        if not (torch.equal(head, reference[:rows]) and torch.equal(tail, reference[-rows:])):
            return False
    return True
