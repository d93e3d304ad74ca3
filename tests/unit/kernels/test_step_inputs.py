"""The inputs of a decode step, laid out by row from state by slot; banned ids."""

from __future__ import annotations

import pytest
import torch
from octavo_kernels.step_inputs import ROW_WORDS, ban_tokens, decode_inputs

PAGE_SIZE = 4
PADDING = 5  # the last slot


class Laid:
    """What a step of the given rows (slot, start, page, token, output position) reads and writes."""

    def __init__(self, rows: list[tuple[int, int, int, int, int]], width: int = 3) -> None:
        batch = len(rows)
        self.tables = torch.arange(6 * 8, dtype=torch.int32).view(6, 8) + 100
        self.last_tokens = torch.arange(6) + 1000
        self.token_ids, self.positions, self.kv_slots, self.output_positions, self.state_slots = (
            torch.full((batch,), -7) for _ in range(5)
        )
        self.context_lens = torch.full((batch,), -7, dtype=torch.int32)
        self.block_tables = torch.full((batch, width), -7, dtype=torch.int32)
        columns = torch.tensor(rows, dtype=torch.int32).T.contiguous()
        assert columns.shape[0] == ROW_WORDS
        decode_inputs(
            columns,
            self.last_tokens,
            self.tables,
            PAGE_SIZE,
            self.token_ids,
            self.positions,
            self.kv_slots,
            self.context_lens,
            self.output_positions,
            self.state_slots,
            self.block_tables,
        )


def test_a_token_that_the_host_knows_is_taken_from_it_and_others_from_the_slot() -> None:
    laid = Laid([(2, 5, 9, 77, 3), (4, 6, 8, -1, 1)])
    assert laid.token_ids.tolist() == [77, 1004]
    assert laid.positions.tolist() == [5, 6]
    assert laid.output_positions.tolist() == [3, 1]
    assert laid.state_slots.tolist() == [2, 4]
    assert laid.context_lens.tolist() == [6, 7]


def test_keys_go_to_the_page_of_the_position_and_the_table_remembers_it() -> None:
    laid = Laid([(2, 5, 9, 1, 0), (3, 8, 6, 1, 0)])
    assert laid.kv_slots.tolist() == [9 * PAGE_SIZE + 1, 6 * PAGE_SIZE]
    assert laid.tables[2].tolist() == [116, 9, 118, 119, 120, 121, 122, 123]
    assert laid.block_tables.tolist() == [[116, 9, 0], [124, 125, 6]]


def test_padding_has_no_context_and_writes_nobodys_state() -> None:
    laid = Laid([(PADDING, -1, 0, 0, 0), (1, 0, 3, 5, 0)])
    assert laid.kv_slots.tolist() == [-1, 12]
    assert laid.context_lens.tolist() == [0, 1]
    assert laid.positions.tolist() == [0, 0]
    assert laid.block_tables[0].tolist() == [0, 0, 0]
    assert laid.tables[PADDING].tolist() == list(range(140, 148))


def test_a_table_wider_than_a_tile_is_copied_whole() -> None:
    tables = torch.arange(2 * 2500, dtype=torch.int32).view(2, 2500)
    columns = torch.tensor([[0], [2400 * PAGE_SIZE], [7], [1], [0]], dtype=torch.int32)
    scalars = [torch.zeros(1, dtype=torch.int64) for _ in range(5)]
    block_tables = torch.full((1, 2500), -7, dtype=torch.int32)
    lens = torch.zeros(1, dtype=torch.int32)
    tokens, positions, kv_slots, outputs, slots = scalars
    decode_inputs(
        columns, torch.zeros(2, dtype=torch.int64), tables, PAGE_SIZE, tokens, positions, kv_slots, lens, outputs,
        slots, block_tables,
    )  # fmt: skip
    assert block_tables[0, :2400].tolist() == list(range(2400))
    assert block_tables[0, 2400:].tolist() == [7] + [0] * 99


def test_a_block_table_wider_than_the_state_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 8"):
        Laid([(0, 0, 0, 0, 0)], width=9)


def test_banned_ids_become_impossible_and_nothing_else_changes() -> None:
    logits = torch.randn(3, 300)
    expected = logits.clone()
    pairs = [(0, 5), (2, 299), (2, 0), *[(1, token_id) for token_id in range(200)]]
    for row, token_id in pairs:
        expected[row, token_id] = -torch.inf
    ban_tokens(logits, torch.tensor([*pairs, (-1, 0)], dtype=torch.int32).T.contiguous())
    assert torch.equal(logits, expected)
