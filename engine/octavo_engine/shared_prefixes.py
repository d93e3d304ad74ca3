"""Shared prefixes of a step of decodes: which rows start with the same pages, uploaded with the step's other columns.

Attention then reads those pages once for all of them (see `octavo_kernels.cascade`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import torch
from octavo_kernels.cascade import SharedTile, find_shared
from octavo_kernels.decode_plan import DecodePlan, allocate_plan, decode_programs
from octavo_kernels.heuristics import CHUNK

from octavo_engine.batch import Array
from octavo_engine.models.config import ModelConfig
from octavo_engine.sequence import Row

_PROGRAMS_ON_CPU: Final = 3


class SharedPrefixes:
    """Shared prefixes of the rows of one captured step.

    Args:
        config: the model's shape.
        size: most rows.
        members: most rows that read a prefix together.
        max_len: most tokens of a row.
        words: [num_words(size, members)] int32 on the device, where `fill` arrives.
    """

    def __init__(self, config: ModelConfig, size: int, members: int, max_len: int, words: torch.Tensor) -> None:
        tiles = _room(size)
        plan = allocate_plan(
            max_batch=size,
            max_len=max_len,
            num_kv_heads=config.num_kv_heads,
            chunk=CHUNK,
            programs=decode_programs() if words.device.type == "cuda" else _PROGRAMS_ON_CPU,
            device=words.device,
            shared_tiles=tiles,
            members=members,
        )
        after_members = tiles * members
        self.plan: DecodePlan = dataclasses.replace(
            plan,
            members=words[:after_members].view(tiles, members),
            tile_shared=words[after_members : after_members + tiles],
            row_shared=words[after_members + tiles :],
        )
        self.plan.members.fill_(-1)  # type: ignore[union-attr]
        self._shape = (tiles, members, size)

    def fill(self, words: Array, tiles: Sequence[SharedTile]) -> None:
        """Write tiles as a step uploads them; tiles beyond the room stay unshared."""
        room, most, size = self._shape
        members = words[: room * most].reshape(room, most)
        tile_shared, row_shared = words[room * most : room * (most + 1)], words[room * (most + 1) :]
        members[:] = -1
        tile_shared[:] = 0
        row_shared[:size] = 0
        for index, tile in enumerate(tiles[:room]):
            rows = list(tile.rows)
            members[index, : len(rows)] = rows
            tile_shared[index] = tile.shared_len
            row_shared[rows] = tile.shared_len


class SharedFinder:
    """Finds the shared prefixes of consecutive steps; looks again when other sequences run.

    Args:
        members: most rows that read a prefix together; 0: there is nothing to find.
        page_size: tokens a page.
    """

    def __init__(self, members: int, page_size: int) -> None:
        self._members = members
        self._page_size = page_size
        self._key: tuple[int, ...] = ()
        self._tiles: list[SharedTile] = []

    def find(self, rows: Sequence[Row]) -> list[SharedTile]:
        """Return the tiles of a step; mostly there are none."""
        if not self._members or len({row.block_table[0] for row in rows}) == len(rows):
            return []
        key = tuple(row.generation for row in rows)
        if key != self._key:
            self._key = key
            self._tiles = find_shared(
                [row.block_table for row in rows],
                [row.start + 1 for row in rows],
                page_size=self._page_size,
                chunk=CHUNK,
                members=self._members,
            )
        return self._tiles


def num_words(size: int, members: int) -> int:
    """Return how many words a step of so many rows uploads for prefixes that so many of them share."""
    return _room(size) * (members + 1) + size


def _room(size: int) -> int:
    return max(1, size // 2)  # a prefix is shared by two or more
