"""Plans that compile what requests will need."""

from __future__ import annotations

import pytest
from octavo_engine.warm_up import chunks_plan


@pytest.mark.parametrize(("num_tokens", "max_len", "lengths"), [(1, 64, [1]), (64, 64, [64]), (150, 64, [64, 64, 22])])
def test_more_tokens_than_a_sequence_may_have_are_several_prompts(
    num_tokens: int, max_len: int, lengths: list[int]
) -> None:
    rows = chunks_plan(num_tokens, max_len, page_size=16).rows
    assert [row.num_tokens for row in rows] == lengths
    assert [row.slot for row in rows] == list(range(len(rows)))
    assert all(set(row.block_table) == {0} and 16 * len(row.block_table) >= row.num_tokens for row in rows)
