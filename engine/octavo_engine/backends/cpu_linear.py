"""Matrix products on the CPU, and the proof that a row never sees its neighbours.

Many rows go through oneDNN with weights packed once; a few rows through `few_rows_product`, which reads half the bytes
where weights are bfloat16. In `exact` numerics a row of the result must be the same bits whatever the number of rows.
oneDNN keeps one order of sums along K for all row counts with weights packed for many rows, and the other kernel can
keep the same one; but nothing promises it. So every shape is probed when it is loaded: what does not give the same bits
is not used. With AVX-512 oneDNN multiplies a single row in an order of its own: it then gets a second row, of zeros. Where
oneDNN depends on the number of rows beyond that, products can run in tiles of a fixed number of rows, which is exact by
construction up to the row's place in the tile, and is probed again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from octavo_kernels.cpu.few_rows import LANES, UNROLL, few_rows_product, lay_out

from octavo_engine.backends.ops import NotExact
from octavo_engine.backends.row_threads import RowThreads
from octavo_engine.models.weights import Linear

_PACK_ROWS: Final = 32
_TILE_ROWS: Final = 32
_FORMS: Final = ((0, 1), (0, 2), (_TILE_ROWS, 1))
"""(rows of a tile, least rows), the cheapest first."""
_FEW_ROWS: Final = 16
"""Up to so many rows, streaming the weight beats oneDNN (measured on AVX2)."""
_K_BLOCKS: Final = (1024, 512, 2048, 256, 1 << 30)
"""Lengths at which a library may break its sums along K; the first is what oneDNN does on AVX2."""
_PROBED_ROWS: Final = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 64, 65, 128, 200, 256)
_LEAST_BLOCKS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """A weight in the layouts that products read.

    Attributes:
        packed: oneDNN's layout, or the plain [out, in] weight where oneDNN has none for the type.
        streamed: layout of `few_rows_product`, or None where it is not used.
        bias: [out] or None.
        height: outputs, N.
        k_block: length of the chains of `few_rows_product`.
        tile_rows: compute in tiles of this many rows; 0 computes all rows at once.
        least_rows: without tiles, compute no fewer rows than these; missing ones are zeros.
    """

    packed: torch.Tensor
    streamed: np.ndarray[Any, Any] | None
    bias: torch.Tensor | None
    height: int
    k_block: int
    tile_rows: int
    least_rows: int


@dataclass(frozen=True, slots=True)
class _Way:
    """How products of one shape are computed; see `PackedLinear`."""

    k_block: int | None
    tile_rows: int = 0
    least_rows: int = 1


def bfloat16_is_fast() -> bool:
    """Tell whether oneDNN multiplies bfloat16 on this CPU; otherwise it runs at a tenth of float32's rate."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # torch has no public form


class CpuLinear:
    """Packs weights of one type and multiplies by them; remembers what it found out about each shape.

    Args:
        dtype: type of inputs and results.
        exact: rows must be independent of each other.
        tiles: fixed tiles may be used to get there, which multiply the cost of small batches.
        threads: share the product of a few rows.
    """

    def __init__(self, dtype: torch.dtype, *, exact: bool, tiles: bool, threads: RowThreads) -> None:
        self._dtype = dtype
        self._exact = exact
        self._forms = _FORMS if tiles else _FORMS[:-1]
        self._threads = threads
        self._ways: dict[torch.Size, _Way] = {}

    def pack(self, linear: Linear) -> PackedLinear:
        """Lay a weight out.

        Raises:
            NotExact: `exact` was asked for and no way of computing this shape is independent of the row count.
        """
        stored = linear.weight.contiguous()
        shape = stored.shape
        packed = _pack(stored.to(self._dtype))
        streamed = lay_out(_array(stored)) if self._can_stream(stored) else None
        if shape not in self._ways:
            self._ways[shape] = self._find_way(packed, streamed, shape)
        way = self._ways[shape]
        return PackedLinear(
            packed=packed,
            streamed=streamed if way.k_block is not None else None,
            bias=None if linear.bias is None else linear.bias.to(self._dtype),
            height=shape[0],
            k_block=way.k_block or 0,
            tile_rows=way.tile_rows,
            least_rows=way.least_rows,
        )

    def apply(self, x: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
        """Return x [T, in] @ weight.T + bias: [T, out]."""
        rows = x.shape[0]
        if linear.streamed is not None and rows <= _FEW_ROWS:
            result = self._stream(x, linear.streamed, linear.height, linear.k_block)
        elif linear.tile_rows:
            padded = torch.nn.functional.pad(x, (0, 0, 0, -rows % linear.tile_rows))
            tiles = [_product(part, linear.packed) for part in torch.split(padded, linear.tile_rows)]
            result = torch.cat(tiles)[:rows]
        elif rows < linear.least_rows:
            padded = torch.nn.functional.pad(x, (0, 0, 0, linear.least_rows - rows))
            result = _product(padded, linear.packed)[:rows]
        else:
            result = _product(x, linear.packed)
        # Not fused into the product: libraries add a bias before or after the sum, and small and large must agree.
        return result if linear.bias is None else result.add_(linear.bias)

    def _can_stream(self, weight: torch.Tensor) -> bool:
        return (
            self._dtype == torch.float32
            and weight.dtype in (torch.float32, torch.bfloat16)
            and weight.shape[0] % LANES == 0
            and weight.shape[1] % UNROLL == 0
        )

    def _stream(self, x: torch.Tensor, weight: np.ndarray[Any, Any], height: int, k_block: int) -> torch.Tensor:
        rows, width = x.shape
        out = torch.empty(rows, height, dtype=torch.float32)
        source, target = x.contiguous().numpy().reshape(-1), out.numpy().reshape(-1)

        def work(first: int, last: int) -> None:
            few_rows_product(source, weight, rows, width, height, k_block, first, last, target)

        self._threads.run(work, height // LANES, _LEAST_BLOCKS)
        return out

    def _find_way(self, packed: torch.Tensor, streamed: np.ndarray[Any, Any] | None, shape: torch.Size) -> _Way:
        if not self._exact:
            return _Way(_K_BLOCKS[0] if streamed is not None else None)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(max(_PROBED_ROWS), shape[1], generator=generator).to(self._dtype)
        probe, cancelling = _cancelling(shape, self._dtype, generator)
        for tile_rows, least_rows in self._forms:
            linear = PackedLinear(
                packed=cancelling,
                streamed=None,
                bias=None,
                height=shape[0],
                k_block=0,
                tile_rows=tile_rows,
                least_rows=least_rows,
            )
            true = replace(linear, packed=packed)
            if not (self._rows_are_independent(probe, linear) and self._rows_are_independent(x, true)):
                continue
            reference = self.apply(x, true)
            for k_block in _K_BLOCKS:
                if self._streams_alike(x, streamed, k_block, reference):
                    return _Way(k_block, tile_rows, least_rows)
            return _Way(None, tile_rows, least_rows)
        raise NotExact(
            f"matrix products of shape {tuple(shape)} in {self._dtype} depend on the number of rows on this CPU: "
            "use --numerics fast"
        )

    def _streams_alike(
        self, x: torch.Tensor, weight: np.ndarray[Any, Any] | None, k_block: int, reference: torch.Tensor
    ) -> bool:
        return weight is not None and all(
            torch.equal(self._stream(x[:rows], weight, reference.shape[1], k_block), reference[:rows])
            for rows in (_FEW_ROWS, 1, 2, 3, 7, _FEW_ROWS - 1)
        )

    def _rows_are_independent(self, x: torch.Tensor, linear: PackedLinear) -> bool:
        reference = self.apply(x, linear)
        for rows in _PROBED_ROWS:
            head, tail = self.apply(x[:rows].contiguous(), linear), self.apply(x[-rows:].contiguous(), linear)
            if not (torch.equal(head, reference[:rows]) and torch.equal(tail, reference[-rows:])):
                return False
        return True


def _cancelling(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [most probed rows, in] and a packed weight [out, in] whose products are nothing but rounding errors.

    The second half of each sum takes the first half back, in another order. So another order along K shows in nearly every
    element, which rounding to bfloat16 would hide in all but a few of an ordinary product.
    """
    height, width = shape
    half = width // 2
    order = torch.randperm(half, generator=generator)
    x, weight = torch.zeros(max(_PROBED_ROWS), width, dtype=dtype), torch.zeros(height, width, dtype=dtype)
    for matrix in (x, weight):
        matrix[:, :half].normal_(generator=generator)
        matrix[:, half : 2 * half] = matrix[:, :half][:, order]
    weight[:, half:].neg_()
    return x, _pack(weight)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    if weight.dtype == torch.bfloat16 and not bfloat16_is_fast():
        return weight
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)  # noqa: SLF001  # no public form
    return packed


def _product(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    if packed.layout == torch._mkldnn:  # type: ignore[attr-defined]  # noqa: SLF001  # torch has no public form
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")  # noqa: SLF001
        return result
    return torch.nn.functional.linear(x, packed)


def _array(weight: torch.Tensor) -> np.ndarray[Any, Any]:
    return (weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight).numpy()
