"""What a decode step does before and after the model, on the device: lay its inputs out by row, and ban ids.

The state of a sequence lives by slot (its block table, its last token), so that a captured step reads this step's rows
from a few words that the host uploads, and the token of each from the step before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch, wait_for_previous

ROW_WORDS = 5
"""Words that `decode_inputs` reads for each row: slot, start, page, token, output position."""
_TILE = 1024
_BANS = 128


def decode_inputs(
    rows: torch.Tensor,
    last_tokens: torch.Tensor,
    tables: torch.Tensor,
    page_size: int,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    kv_slots: torch.Tensor,
    context_lens: torch.Tensor,
    output_positions: torch.Tensor,
    state_slots: torch.Tensor,
    block_tables: torch.Tensor,
) -> None:
    """Lay out a step of one token per sequence.

    Args:
        rows: [ROW_WORDS, B] int32: slot of the row's state; position of its token, negative for padding; page of that
            position; the token, or -1 for the one that the slot sampled last; output position of the token to be
            sampled.
        last_tokens: [slots] int64.
        tables: [slots, max_pages] int32; the entry of the row's position is written, those before it must be there.
        page_size: tokens a page.
        token_ids: [B] int64, written.
        positions: [B] int64, written; 0 for padding.
        kv_slots: [B] int64, written: page * page_size + offset; -1 for padding.
        context_lens: [B] int32, written; 0 for padding.
        output_positions: [B] int64, written.
        state_slots: [B] int64, written: the slots.
        block_tables: [B, W] int32, written: the leading W entries of each row's table, 0 beyond its position.
    """
    batch, device = block_tables.shape[0], rows.device
    check_tensor("rows", rows, (ROW_WORDS, batch), torch.int32, device)
    check_vector("last_tokens", last_tokens, tables.shape[0], torch.int64, device)
    check_tensor("tables", tables, tuple(tables.shape), torch.int32, device)
    check_tensor("block_tables", block_tables, tuple(block_tables.shape), torch.int32, device)
    for name, column in (
        ("token_ids", token_ids),
        ("positions", positions),
        ("kv_slots", kv_slots),
        ("output_positions", output_positions),
        ("state_slots", state_slots),
    ):
        check_vector(name, column, batch, torch.int64, device)
    check_vector("context_lens", context_lens, batch, torch.int32, device)
    width = block_tables.shape[1]
    if width > tables.shape[1]:
        raise ValueError(f"block_tables: {width} pages wide, expected at most {tables.shape[1]}")
    if batch == 0:
        return
    launch(
        _lay_out_row,
        (batch, cdiv(width, _TILE)),
        rows,
        last_tokens,
        tables,
        token_ids,
        positions,
        kv_slots,
        context_lens,
        output_positions,
        state_slots,
        block_tables,
        width,
        rows.stride(0),
        tables.stride(0),
        block_tables.stride(0),
        PAGE=page_size,
        TILE=_TILE,
        num_warps=4,
        **early_launch(),
    )


@triton.jit(do_not_specialize=["width", "stride_rows"])
def _lay_out_row(
    rows_ptr,
    last_tokens_ptr,
    tables_ptr,
    token_ids_ptr,
    positions_ptr,
    kv_slots_ptr,
    context_lens_ptr,
    output_positions_ptr,
    state_slots_ptr,
    block_tables_ptr,
    width,
    stride_rows,
    stride_tables,
    stride_block_tables,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid (row, tile of the block table); the first tile's program writes the row's scalars."""
    row, tile = tl.program_id(0), tl.program_id(1)
    wait_for_previous(EARLY)
    slot = tl.load(rows_ptr + row)
    start = tl.load(rows_ptr + stride_rows + row)
    page = tl.load(rows_ptr + 2 * stride_rows + row)
    is_padding = start < 0
    position = tl.maximum(start, 0)
    index = position // PAGE
    table = tables_ptr + slot.to(tl.int64) * stride_tables
    if tile == 0:
        token = tl.load(rows_ptr + 3 * stride_rows + row).to(tl.int64)
        if token < 0:
            token = tl.load(last_tokens_ptr + slot)
        tl.store(token_ids_ptr + row, token)
        tl.store(positions_ptr + row, position.to(tl.int64))
        written = page.to(tl.int64) * PAGE + position % PAGE
        tl.store(kv_slots_ptr + row, tl.where(is_padding, -1, written))
        tl.store(context_lens_ptr + row, tl.where(is_padding, 0, position + 1))
        tl.store(output_positions_ptr + row, tl.load(rows_ptr + 4 * stride_rows + row).to(tl.int64))
        tl.store(state_slots_ptr + row, slot.to(tl.int64))
        if not is_padding:
            tl.store(table + index, page)
    columns = tile * TILE + tl.arange(0, TILE)
    pages = tl.load(table + columns, mask=(columns < index) & (columns < width) & (not is_padding), other=0)
    pages = tl.where((columns == index) & (not is_padding), page, pages)
    tl.store(block_tables_ptr + row.to(tl.int64) * stride_block_tables + columns, pages, mask=columns < width)


def ban_tokens(logits: torch.Tensor, bans: torch.Tensor) -> None:
    """Set logits to -inf in place.

    Args:
        logits: [B, V] fp32, fp16 or bf16.
        bans: [2, N] int32: row, or -1 for none; token id.
    """
    check_tensor("logits", logits, tuple(logits.shape), FLOATS, logits.device)
    check_tensor("bans", bans, (2, bans.shape[1]), torch.int32, logits.device)
    num_bans = bans.shape[1]
    if num_bans:
        grid = (cdiv(num_bans, _BANS),)
        launch(_ban, grid, logits, bans, num_bans, bans.stride(0), logits.stride(0), BANS=_BANS, **early_launch())


@triton.jit(do_not_specialize=["num_bans", "stride_bans"])
def _ban(logits_ptr, bans_ptr, num_bans, stride_bans, stride_row, BANS: tl.constexpr, EARLY: tl.constexpr):
    """Grid (BANS entries)."""
    wait_for_previous(EARLY)
    entries = tl.program_id(0) * BANS + tl.arange(0, BANS)
    rows = tl.load(bans_ptr + entries, mask=entries < num_bans, other=-1)
    ids = tl.load(bans_ptr + stride_bans + entries, mask=rows >= 0, other=0)
    minus_infinity = tl.full([BANS], float("-inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + rows.to(tl.int64) * stride_row + ids, minus_infinity, mask=rows >= 0)
