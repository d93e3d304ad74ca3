"""Shared prefixes of decoding sequences: find the pages that many of them start with, to read those once for all.

The query heads of all members fill one tile of the decode kernel, which without them would be mostly padding (Juravsky
et al., "Hydragen", arXiv 2402.05099). Only whole chunks are shared and every chunk keeps a state of its own, merged in
chunk order, so sharing changes no bit of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_kernels.decode_plan import DecodePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTile:
    """Rows of a batch whose first `shared_len` tokens, whole chunks, lie in the same pages."""

    rows: tuple[int, ...]
    shared_len: int


def find_shared(
    tables: Sequence[Sequence[int]], lengths: Sequence[int], *, page_size: int, chunk: int, members: int
) -> list[SharedTile]:
    """Group the rows of a batch by common leading pages, so that the fewest chunks are read.

    Args:
        tables: page ids of each sequence.
        lengths: tokens of each sequence, the query's own included; the last token is never shared.
        page_size: tokens a page.
        chunk: tokens a chunk, a multiple of page_size.
        members: most rows of a tile (see `most_members`).

    Returns:
        Tiles of two members or more, each row in one tile at most; tiles that save the most chunks first.
    """
    if chunk % page_size != 0:
        raise ValueError(f"chunk: {chunk}, expected a multiple of the page size {page_size}")
    if members < 2:
        return []
    pages = chunk // page_size
    _, groups = _best_groups(list(range(len(tables))), 0, tables, [max(n - 1, 0) // chunk for n in lengths], pages)
    tiles = [
        SharedTile(rows=tuple(rows[first : first + members]), shared_len=depth * chunk)
        for rows, depth in groups
        for first in range(0, len(rows), members)
        if len(rows) - first > 1
    ]
    return sorted(tiles, key=lambda tile: -(len(tile.rows) - 1) * tile.shared_len)


def set_shared(plan: DecodePlan, tiles: Sequence[SharedTile]) -> None:
    """Upload the tiles into the plan, for the next `plan_decode`; tiles beyond the plan's room stay unshared."""
    if plan.members is None or plan.tile_shared is None or plan.row_shared is None:
        raise ValueError("plan: no room for shared tiles, expected shared_tiles > 0 at its allocation")
    room, most = plan.members.shape
    members = torch.full((room, most), -1, dtype=torch.int32)
    tile_shared = torch.zeros(room, dtype=torch.int32)
    row_shared = torch.zeros(plan.row_shared.shape[0], dtype=torch.int32)
    for index, tile in enumerate(tiles[:room]):
        if len(tile.rows) > most:
            raise ValueError(f"tiles: {len(tile.rows)} members, expected at most {most}")
        rows = torch.tensor(tile.rows, dtype=torch.int32)
        members[index, : len(rows)] = rows
        tile_shared[index] = tile.shared_len
        row_shared[rows.long()] = tile.shared_len
    plan.members.copy_(members)
    plan.tile_shared.copy_(tile_shared)
    plan.row_shared.copy_(row_shared)


def _best_groups(
    rows: list[int], depth: int, tables: Sequence[Sequence[int]], most: Sequence[int], pages: int
) -> tuple[int, list[tuple[list[int], int]]]:
    """Return (chunk reads saved, groups of (rows, shared chunks)) for rows that share their first `depth` chunks."""
    while True:
        longer: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            if depth < most[row]:
                longer.setdefault(tuple(tables[row][depth * pages : (depth + 1) * pages]), []).append(row)
        if len(longer) != 1 or len(next(iter(longer.values()))) != len(rows):
            break
        depth += 1  # all of them go on alike
    together = (len(rows) - 1) * depth
    parts = [_best_groups(part, depth + 1, tables, most, pages) for part in longer.values() if len(part) > 1]
    apart = sum(saved for saved, _ in parts)
    if apart > together:
        return apart, [group for _, groups in parts for group in groups]
    return together, [(rows, depth)] if depth > 0 and len(rows) > 1 else []
