"""Tile sizes by architecture and shape. A table, looked up at each launch: nothing is tuned while serving.

Entries are tried from the top; the first whose fields all match wins, and None matches anything. A tile may depend on
the model and on the pool, never on the batch: that keeps a sequence's result independent of its neighbours.
"""

from dataclasses import dataclass

import torch

# Stands in for a compute capability when Triton interprets kernels instead of compiling them.
INTERPRETER = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Launch parameters of an attention kernel.

    `rows` query rows (tokens x heads of one group) meet `tokens` keys a step. `stages` counts Triton's pipeline stages;
    a block-table read feeds each load, so (stages - 1) // 2 tiles of K and of V are in flight. `stagger` (extend only)
    computes the scores of a tile before the product with the values of the tile before.
    """

    rows: int
    tokens: int
    warps: int
    stages: int
    stagger: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a table: the shapes it is for (None: any) and the tile they get."""

    tile: Tile
    arch: int | None = None
    head_dim: int | None = None  # after padding to a power of two
    group: int | None = None
    dtype: torch.dtype | None = None
    page_size: int | None = None


# Tokens of a long context whose softmax is a state of its own. Exact results depend on it: it is the same for all kernels
# and batches.
CHUNK = 256

# Decode reads each key once for a whole group: 16 rows, the least that tensor cores take, and deep pipelining.
DECODE = (
    Entry(arch=INTERPRETER, tile=Tile(rows=16, tokens=32, warps=4, stages=2)),
    Entry(dtype=torch.float32, tile=Tile(rows=16, tokens=32, warps=4, stages=3)),
    Entry(head_dim=256, tile=Tile(rows=16, tokens=64, warps=8, stages=3)),
    Entry(tile=Tile(rows=16, tokens=64, warps=4, stages=5)),
)

# Extend is bound by arithmetic: 64 or 128 rows, 16 a warp, issue the 64-row warp-group instructions of Hopper. With 64,
# two programs share a multiprocessor, and one's softmax runs beside the other's products.
EXTEND = (
    Entry(arch=INTERPRETER, tile=Tile(rows=32, tokens=32, warps=4, stages=2)),
    Entry(dtype=torch.float32, tile=Tile(rows=16, tokens=16, warps=4, stages=2)),
    Entry(head_dim=256, tile=Tile(rows=128, tokens=32, warps=8, stages=3)),
    Entry(head_dim=64, tile=Tile(rows=128, tokens=64, warps=8, stages=5)),
    Entry(tile=Tile(rows=64, tokens=64, warps=4, stages=5)),
)

# Exact decode rounds as extend does if a warp holds 16 whole rows and the tile as many keys as the one of EXTEND_EXACT.
DECODE_EXACT = (
    Entry(arch=INTERPRETER, tile=Tile(rows=32, tokens=32, warps=4, stages=2)),
    Entry(dtype=torch.float32, tile=Tile(rows=16, tokens=16, warps=4, stages=2)),
    Entry(head_dim=256, tile=Tile(rows=64, tokens=32, warps=8, stages=2)),
    Entry(tile=Tile(rows=64, tokens=64, warps=4, stages=5)),
)

EXTEND_EXACT = (
    Entry(arch=INTERPRETER, tile=Tile(rows=32, tokens=32, warps=4, stages=2, stagger=True)),
    Entry(dtype=torch.float32, tile=Tile(rows=16, tokens=16, warps=4, stages=2)),
    Entry(head_dim=256, tile=Tile(rows=64, tokens=32, warps=8, stages=2)),
    Entry(tile=Tile(rows=64, tokens=64, warps=4, stages=5)),
)

# (sequences times key/value heads, tokens a chunk) of decodes that need not be exact; beyond the last, `_LONG_CHUNK`.
_FAST_CHUNKS = ((16, 128), (64, 256), (128, 512))
_LONG_CHUNK = 2048
# An exact decode of so many sequences times key/value heads fills the device with a program for each.
_FILLED = 256
_SPAN = 8


def fast_chunk(programs: int) -> int:
    """Return the tokens a chunk for decodes that need not be exact: small batches are split finer, to fill the device.

    Args:
        programs: sequences of the batch (or of the size that a graph is captured for) times key/value heads.
    """
    return next((chunk for most, chunk in _FAST_CHUNKS if programs <= most), _LONG_CHUNK)


def exact_span(programs: int) -> int:
    """Return how many chunks of an exact decode one program may read; the argument is that of `fast_chunk`."""
    return _SPAN if programs >= _FILLED else 1


def lookup(table: tuple[Entry, ...], arch: int, head_dim: int, group: int, dtype: torch.dtype, page_size: int) -> Tile:
    """Return the tile of the first entry of the table that matches; its last entry must match everything."""
    shape = (arch, head_dim, group, dtype, page_size)
    for entry in table:
        wanted = (entry.arch, entry.head_dim, entry.group, entry.dtype, entry.page_size)
        if all(want is None or want == have for want, have in zip(wanted, shape, strict=True)):
            return entry.tile
    raise AssertionError(f"no entry matches {shape}: the last entry of a table must match everything")
