from __future__ import annotations

import pytest
import torch
from octavo_kernels.heuristics import DECODE, EXTEND, INTERPRETER, Entry, Tile, lookup

TILE = Tile(rows=16, tokens=16, warps=1, stages=1)


def test_first_entry_that_matches_wins() -> None:
    special = Tile(rows=32, tokens=16, warps=1, stages=1)
    table = (Entry(head_dim=64, group=4, tile=special), Entry(tile=TILE))
    assert lookup(table, 90, 64, 4, torch.bfloat16, 16) is special
    assert lookup(table, 90, 64, 8, torch.bfloat16, 16) is TILE


def test_a_table_must_match_everything() -> None:
    with pytest.raises(AssertionError, match="no entry matches"):
        lookup((Entry(arch=80, tile=TILE),), 90, 64, 4, torch.bfloat16, 16)


@pytest.mark.parametrize("table", [DECODE, EXTEND])
@pytest.mark.parametrize("arch", [INTERPRETER, 80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tiles_are_powers_of_two_that_divide_the_default_chunk(table, arch, dtype) -> None:
    for head_dim in (16, 64, 128, 256):
        tile = lookup(table, arch, head_dim, 4, dtype, 16)
        assert tile.rows >= 16
        assert 512 % tile.tokens == 0
        assert tile.rows & (tile.rows - 1) == 0
