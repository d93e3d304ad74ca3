"""Tile sizes of the matrix products by number of rows and shape of the weight. Nothing is tuned while serving.

Any tile gives the same bits, so exact products may take whichever is fast. A few rows are bound by reading the weight:
for them a table names the tile. Many rows are bound by arithmetic, and what matters is how well the tiles fill whole
waves of multiprocessors: for them a model of the time chooses, which may also leave the last rows to smaller tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from octavo_kernels.arithmetic import cdiv
from octavo_kernels.heuristics import INTERPRETER


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTile:
    """Launch parameters of a product [M, K] @ [N, K].T.

    Attributes:
        rows: rows of x that a program computes.
        columns: rows of w that it computes, of each half if gated.
        depth: elements along K of one pipeline stage.
        warps: warps of a program.
        stages: pipeline stages.
        group: row tiles that share a strip of w in the L2 cache.
        swapped: put w on the left of the instruction, where 64 rows are due, and a few rows of x on the right.
        x_tma: load x by a tensor descriptor where strides allow it, not by pointers.
        w_tma: the same for w.
        persistent: one program a multiprocessor walks over tiles.
        early: start before the previous kernel has ended and wait for it (programmatic dependent launch).
        prefetch: bytes of each row of w to bring into the L2 cache before that wait; 0 or a power of two from 64 on.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    group: int = 8
    swapped: bool = False
    x_tma: bool = True
    w_tma: bool = True
    persistent: bool = False
    early: bool = False
    prefetch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a table: tiles for up to so many rows and columns (None: any number)."""

    most_rows: int  # M
    most_columns: int | None  # N, of both halves if gated
    tile: ProductTile
    gated_tile: ProductTile


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A tile for many rows.

    Attributes:
        tile: the tile; gated, it is half as wide.
        speed: sums a second of a busy multiprocessor, relative to the first candidate.
        resident: programs that share a multiprocessor.
        least_waves: a candidate for so many waves or more.
    """

    tile: ProductTile
    speed: float
    resident: int = 1
    least_waves: int = 1


# Without tensor memory access and warp-group instructions, or without tensor cores (fp32): small and plain.
_PLAIN = ProductTile(rows=32, columns=32, depth=32, warps=4, stages=2, x_tma=False, w_tma=False)
_OLDER = ProductTile(rows=64, columns=64, depth=32, warps=4, stages=3, x_tma=False, w_tma=False)


_HOPPER = 90

# A second launch costs some 4 us by estimate; in them a multiprocessor of an H100 or H200 makes so many sums.
_LAUNCH_SUMS = 12e6
# Two launches must be modelled to take at most this share of the time of one.
_WORTHWHILE = 0.96

# More would be evicted from the L2 cache before it is used, or delay the loads that follow.
_PREFETCH = 512


# No projection of a usual model has so many columns, every vocabulary has.
_VOCABULARY = 1 << 14


def _few(rows: int, columns: int, depth: int, stages: int, *, swapped: bool = True) -> ProductTile:
    return ProductTile(
        rows=rows, columns=columns, depth=depth, warps=4, stages=stages, swapped=swapped, early=True, prefetch=_PREFETCH
    )


# The weight is read once, at the speed of memory: what counts is bytes in flight and programs for all multiprocessors.
# Where the weight is narrow, two row tiles that share it through the L2 cache beat one that is twice as high.
FEW_ROWS = (
    Entry(most_rows=16, most_columns=8192, tile=_few(16, 64, 256, 5), gated_tile=_few(16, 64, 128, 5)),
    Entry(most_rows=16, most_columns=None, tile=_few(16, 128, 128, 3), gated_tile=_few(16, 64, 256, 3)),
    Entry(most_rows=32, most_columns=4096, tile=_few(16, 64, 256, 5), gated_tile=_few(32, 64, 128, 5)),
    Entry(most_rows=32, most_columns=8192, tile=_few(32, 64, 256, 4), gated_tile=_few(32, 64, 128, 5)),
    Entry(most_rows=32, most_columns=None, tile=_few(32, 64, 128, 4), gated_tile=_few(32, 64, 128, 5)),
    Entry(
        most_rows=64,
        most_columns=1024,
        tile=_few(64, 16, 256, 4, swapped=False),
        gated_tile=_few(64, 16, 128, 6, swapped=False),
    ),
    Entry(most_rows=64, most_columns=4096, tile=_few(32, 64, 128, 8), gated_tile=_few(64, 32, 128, 6, swapped=False)),
    Entry(
        most_rows=64,
        most_columns=8192,
        tile=_few(64, 64, 128, 6, swapped=False),
        gated_tile=_few(64, 32, 128, 6, swapped=False),
    ),
    Entry(most_rows=64, most_columns=None, tile=_few(64, 128, 128, 4), gated_tile=_few(64, 64, 128, 4, swapped=False)),
)

_LARGE = ProductTile(rows=128, columns=256, depth=64, warps=8, stages=4)
MANY_ROWS = (
    Candidate(tile=_LARGE, speed=1.0),
    Candidate(tile=replace(_LARGE, stages=3, group=16, persistent=True), speed=1.02, least_waves=5),
    Candidate(tile=ProductTile(rows=128, columns=128, depth=64, warps=8, stages=6), speed=0.9),
    Candidate(tile=ProductTile(rows=64, columns=128, depth=64, warps=4, stages=4), speed=0.87, resident=2),
    Candidate(tile=ProductTile(rows=64, columns=128, depth=128, warps=4, stages=4), speed=0.78),
    Candidate(tile=ProductTile(rows=64, columns=64, depth=128, warps=4, stages=6), speed=0.57),
)


@lru_cache(maxsize=8192)
def exact_tile(
    arch: int, dtype: torch.dtype, num_rows: int, num_columns: int, multiprocessors: int, *, gated: bool
) -> ProductTile:
    """Return the tile of an exact product.

    Args:
        arch: compute capability, such as 90, or INTERPRETER.
        dtype: of x and w.
        num_rows: M.
        num_columns: N, of both halves if gated.
        multiprocessors: of the device.
        gated: whether w is [gate | up].
    """
    if arch == INTERPRETER or dtype == torch.float32:
        return _PLAIN
    if arch < _HOPPER:
        return _OLDER
    for entry in FEW_ROWS:
        if num_rows <= entry.most_rows and (entry.most_columns is None or num_columns <= entry.most_columns):
            return entry.gated_tile if gated else entry.tile
    tile = min(MANY_ROWS, key=lambda candidate: _modelled_time(candidate, num_rows, num_columns, multiprocessors)).tile
    return replace(tile, columns=tile.columns // 2) if gated else tile


@lru_cache(maxsize=8192)
def exact_parts(
    arch: int, dtype: torch.dtype, num_rows: int, num_columns: int, depth: int, multiprocessors: int, *, gated: bool
) -> tuple[tuple[int, ProductTile], ...]:
    """Return the launches of an exact product, arguments and result as of `product_parts`: one, or two if that is faster.

    Large tiles reach the most of a multiprocessor, but where their last wave is nearly empty, whole waves of them and
    smaller tiles for the other rows end sooner.
    """

    def choose(rows: int) -> ProductTile:
        return exact_tile(arch, dtype, rows, num_columns, multiprocessors, gated=gated)

    def least_time(rows: int) -> float:
        return min(_modelled_time(candidate, rows, num_columns, multiprocessors) for candidate in MANY_ROWS)

    whole = ((num_rows, choose(num_rows)),)
    if arch == INTERPRETER or arch < _HOPPER or dtype == torch.float32:
        return whole
    column_tiles = cdiv(num_columns, _LARGE.columns)
    waves = num_rows // _LARGE.rows * column_tiles // multiprocessors
    first = waves * multiprocessors // column_tiles * _LARGE.rows
    if not 0 < first < num_rows:
        return whole
    split_time = least_time(first) + least_time(num_rows - first) + _LAUNCH_SUMS / depth
    if split_time > _WORTHWHILE * least_time(num_rows):
        return whole
    return (first, choose(first)), (num_rows - first, choose(num_rows - first))


def _modelled_time(candidate: Candidate, num_rows: int, num_columns: int, multiprocessors: int) -> float:
    """Return the time of a product in sums that a multiprocessor makes, for each element along K."""
    tile = candidate.tile
    tiles = cdiv(num_rows, tile.rows) * cdiv(num_columns, tile.columns)
    waves = cdiv(tiles, multiprocessors * candidate.resident)
    if waves < candidate.least_waves:
        return float("inf")
    return waves * candidate.resident * tile.rows * tile.columns / candidate.speed


@lru_cache(maxsize=8192)
def fast_tile(
    arch: int, dtype: torch.dtype, num_rows: int, num_columns: int, multiprocessors: int, *, gated: bool
) -> ProductTile | None:
    """Return the tile of a fast product, arguments as of `exact_tile`; None: the vendor's library is faster."""
    own = arch == INTERPRETER
    if arch >= _HOPPER and dtype != torch.float32:
        if gated:  # one kernel instead of two
            own = num_rows <= 256 or num_rows >= 1024
        else:
            # A head over the vocabulary is as fast as the library's, and meets every number of rows, where the library
            # would load another kernel for many of them, at tens of milliseconds each.
            own = num_rows <= 64 or (num_rows <= 256 and (num_columns <= 4096 or num_columns >= _VOCABULARY))
            own |= num_rows >= 4096 and 2048 <= num_columns <= 4096
    return exact_tile(arch, dtype, num_rows, num_columns, multiprocessors, gated=gated) if own else None


def product_parts(
    arch: int,
    dtype: torch.dtype,
    num_rows: int,
    num_columns: int,
    depth: int,
    multiprocessors: int,
    *,
    exact: bool,
    gated: bool,
) -> tuple[tuple[int, ProductTile], ...]:
    """Return a product's launches, as (rows, tile) from the first row on; none: the vendor's library computes it.

    Args:
        arch: compute capability, such as 90, or INTERPRETER.
        dtype: of x and w.
        num_rows: M.
        num_columns: N, of both halves if gated.
        depth: K.
        multiprocessors: of the device.
        exact: whether the product is exact.
        gated: whether w is [gate | up].
    """
    if exact:
        return exact_parts(arch, dtype, num_rows, num_columns, depth, multiprocessors, gated=gated)
    tile = fast_tile(arch, dtype, num_rows, num_columns, multiprocessors, gated=gated)
    return () if tile is None else ((num_rows, tile),)


def form_sizes(
    arch: int,
    dtype: torch.dtype,
    most_rows: int,
    shapes: Sequence[tuple[int, int, bool]],
    multiprocessors: int,
    *,
    exact: bool,
) -> list[int]:
    """Return numbers of rows, ascending, that between them take every tile that products of 1 to `most_rows` rows take.

    Args:
        arch: compute capability, such as 90, or INTERPRETER.
        dtype: of x and w.
        most_rows: the largest M to come.
        shapes: (N, of both halves if gated; K; whether gated) of each weight.
        multiprocessors: of the device.
        exact: whether products are exact.
    """
    seen: set[tuple[int, int, bool, ProductTile | None]] = set()
    sizes = []
    for rows in (1, *range(16, most_rows, 16), most_rows):  # tiles are multiples of 16 rows high
        forms: set[tuple[int, int, bool, ProductTile | None]] = set()
        for columns, depth, gated in shapes:
            parts = product_parts(arch, dtype, rows, columns, depth, multiprocessors, exact=exact, gated=gated)
            forms |= {(columns, depth, gated, tile) for _, tile in parts} or {(columns, depth, gated, None)}
        if not forms <= seen:
            seen |= forms
            sizes.append(rows)
    return sizes
