"""The tensors of one step: a StepPlan laid out as flat columns, on the backend's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo_engine.sequence import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Columns of one step. T tokens, S rows (sequences), B rows that sample.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64.
        slots: [T] int64, page * page_size + offset.
        row_of_token: [T] int32, index of the token's row.
        query_start: [S + 1] int32, prefix sums of tokens per row.
        context_lens: [S] int32, tokens with keys after this step.
        block_tables: [S, max_pages] int32, padded with page 0 beyond a sequence's pages.
        num_decodes: leading rows with one token.
        max_query_len: most tokens in a row.
        max_context_len: largest of context_lens.
        sample_tokens: [B] int64, index of each sampling token.
        temperature, top_p, min_p: [B] float32.
        top_k: [B] int32.
        seeds: [B] int64, the two's complement of the unsigned seed.
        output_positions: [B] int64.
        banned: (index among the sampling rows, token ids) that must not be chosen.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    row_of_token: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_context_len: int
    sample_tokens: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    output_positions: torch.Tensor
    banned: tuple[tuple[int, tuple[int, ...]], ...]


def build_batch(plan: StepPlan, page_size: int, device: torch.device) -> Batch:
    """Lay a plan out. Rows must not be empty."""
    rows = plan.rows
    counts = np.array([row.num_tokens for row in rows], dtype=np.int32)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start[1:])
    row_of_token = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    positions = np.arange(query_start[-1], dtype=np.int64) + np.repeat(starts - query_start[:-1], counts)
    token_ids: list[int] = []
    for row in rows:
        token_ids += row.sequence.tokens[row.start : row.start + row.num_tokens]
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table
    slots = tables[row_of_token, positions // page_size].astype(np.int64) * page_size + positions % page_size
    context_lens = (starts + counts).astype(np.int32)

    samplers = [(index, row) for index, row in enumerate(rows) if row.samples]
    sampling = [row.sequence.request.sampling for _, row in samplers]

    def column(values: list[int] | list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def array(values: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    return Batch(
        token_ids=column(token_ids, torch.int64),
        positions=array(positions),
        slots=array(slots),
        row_of_token=array(row_of_token),
        query_start=array(query_start),
        context_lens=array(context_lens),
        block_tables=array(tables),
        num_decodes=_leading_ones(counts),
        max_query_len=int(counts.max()),
        max_context_len=int(context_lens.max()),
        sample_tokens=column([int(query_start[index + 1]) - 1 for index, _ in samplers], torch.int64),
        temperature=column([each.temperature for each in sampling], torch.float32),
        top_k=column([each.top_k for each in sampling], torch.int32),
        top_p=column([each.top_p for each in sampling], torch.float32),
        min_p=column([each.min_p for each in sampling], torch.float32),
        seeds=column([_signed(row.sequence.seed) for _, row in samplers], torch.int64),
        output_positions=column([row.output_position for _, row in samplers], torch.int64),
        banned=tuple((at, row.banned_token_ids) for at, (_, row) in enumerate(samplers) if row.banned_token_ids),
    )


def _leading_ones(counts: np.ndarray[Any, Any]) -> int:
    more = np.flatnonzero(counts != 1)
    return int(more[0]) if len(more) else len(counts)


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed
