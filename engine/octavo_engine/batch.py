"""The tensors of one step: a StepPlan laid out as flat columns, on the backend's device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo_engine.sequence import Row, StepPlan

Array = np.ndarray[Any, Any]
Put = Callable[[Array], torch.Tensor]
"""Brings an array to the device. The array is a fresh one, and nobody changes it later."""

TABLE_STEP = 16
"""Block tables are multiples of so many entries wide: kernels are compiled for strides that 16 divides."""

UNKNOWN_TOKEN = -1
"""Stands in `token_ids` for a token that the host has not read yet."""


def widest_table(max_len: int, page_size: int) -> int:
    """Return the pages of the widest block table: that of a sequence of `max_len` tokens."""
    return -(-max_len // (TABLE_STEP * page_size)) * TABLE_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """Columns of the C rows behind the decodes, apart: kernels are compiled for aligned tensors, which slices are not.

    Attributes:
        query_start: [C + 1] int32, where each one's tokens start among those of the step, and where the last one's end.
        context_lens: [C] int32.
        block_tables: [C, max_pages] int32.
    """

    query_start: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalties:
    """Columns of the B sampling rows of a step in which some have penalties, and what their sequences hold.

    Attributes:
        tallies: [N, V] int32, for each id 2 * (times in the output) + (1 if in the prompt). Sampling counts on.
        slots: [B] int64, the rows' places among the tallies; any for a row without penalties.
        frequency, presence: [B] float32; 0 is off.
        repetition: [B] float32; 1 is off.
    """

    tallies: torch.Tensor
    slots: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    repetition: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the layers read of one step: T tokens of S rows (sequences), the decodes first.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64.
        slots: [T] int64, page * page_size + offset; -1 for padding.
        row_of_token: [T] int32, index of the token's row; None in a captured step, whose kernels do not ask.
        context_lens: [S] int32, tokens with keys after this step; 0 for padding; -1 for padding beside a chunk, whose tokens
            have the padding's rows of the output. A captured step has those of its decodes alone.
        block_tables: [S, max_pages] int32, likewise; padded with page 0 beyond a sequence's pages.
        num_decodes: leading rows with one token.
        chunks: the other rows, if any.
        max_query_len: most tokens in a row, or a bound of it.
        shared: the decodes' shared prefixes, as the backend wants them; None: not looked for.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    row_of_token: torch.Tensor | None
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    num_decodes: int
    chunks: Chunks | None
    max_query_len: int
    shared: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Inputs):
    """A step whole: also what sampling reads. B rows sample.

    Attributes:
        sample_tokens: [B] int64, index of each sampling token.
        temperature, top_p, min_p: [B] float32.
        top_k: [B] int32.
        seeds: [B] int64, the two's complement of the unsigned seed.
        output_positions: [B] int64.
        banned: (index among the sampling rows, token ids) that must not be chosen.
        last: the sampling tokens as rows of their own, for the last layer: nothing reads what others attend to there.
            None if every token samples, or none.
        penalties: None if no sampling row has any.
    """

    sample_tokens: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    output_positions: torch.Tensor
    banned: tuple[tuple[int, tuple[int, ...]], ...]
    last: Batch | None = None
    penalties: Penalties | None = None


def block_tables_of(plan: StepPlan) -> Array:
    """Return the block tables of a plan's rows: [S, max_pages] int32, padded with page 0."""
    rows = plan.rows
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table
    return tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A plan's columns on the host. T tokens, S rows, B rows that sample.

    Attributes:
        token_ids, positions, slots: [T] int64, as in Batch.
        query_start: [S + 1] int32.
        context_lens: [S] int32.
        tables: [S, max_pages] int32.
        num_decodes: leading rows with one token.
        samplers: the rows that sample, by index.
    """

    token_ids: Array
    positions: Array
    slots: Array
    query_start: Array
    context_lens: Array
    tables: Array
    num_decodes: int
    samplers: dict[int, Row]

    @property
    def sample_tokens(self) -> Array:
        """[B] int64, index of each sampling token."""
        return self.query_start[1:][list(self.samplers)].astype(np.int64) - 1


def lay_out(plan: StepPlan, page_size: int, tables: Array) -> Layout:
    """Lay a plan out. Rows must not be empty.

    Args:
        plan: the plan; a decode's token that the host does not know becomes UNKNOWN_TOKEN.
        page_size: tokens a page.
        tables: [S, max_pages] int32, block tables of its rows.
    """
    rows = plan.rows
    counts = np.array([row.num_tokens for row in rows], dtype=np.int32)
    starts = np.array([row.start for row in rows], dtype=np.int64)
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start[1:])
    positions = np.arange(query_start[-1], dtype=np.int64) + np.repeat(starts - query_start[:-1], counts)
    token_ids: list[int] = []
    for row in rows:
        token_ids += row.sequence.tokens[row.start : row.start + row.num_tokens] or [UNKNOWN_TOKEN]
    row_of_token = np.repeat(np.arange(len(rows)), counts)
    return Layout(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=positions,
        slots=tables[row_of_token, positions // page_size].astype(np.int64) * page_size + positions % page_size,
        query_start=query_start,
        context_lens=(starts + counts).astype(np.int32),
        tables=tables,
        num_decodes=_leading_ones(counts),
        samplers={index: row for index, row in enumerate(rows) if row.samples},
    )


def build_batch(plan: StepPlan, page_size: int, tables: Array, put: Put = torch.from_numpy) -> Batch:
    """Lay a plan out (see `lay_out`) and bring all of it to the device."""
    return batch_of(lay_out(plan, page_size, tables), put)


def batch_of(layout: Layout, put: Put) -> Batch:
    """Bring a layout to the device."""
    query_start, context_lens, tables = layout.query_start, layout.context_lens, layout.tables
    num_decodes, counts = layout.num_decodes, np.diff(query_start)
    chunks = None
    if num_decodes < len(counts):
        chunks = Chunks(
            query_start=put(query_start[num_decodes:]),
            context_lens=put(context_lens[num_decodes:]),
            block_tables=put(tables[num_decodes:]),
        )
    columns = _sampling_columns(layout, put)
    samples_few = 0 < len(layout.samplers) < len(layout.positions)
    return Batch(
        token_ids=put(layout.token_ids),
        positions=put(layout.positions),
        slots=put(layout.slots),
        row_of_token=put(np.repeat(np.arange(len(counts), dtype=np.int32), counts)),
        context_lens=put(context_lens),
        block_tables=put(tables),
        num_decodes=num_decodes,
        chunks=chunks,
        max_query_len=int(counts.max()),
        sample_tokens=put(layout.sample_tokens),
        last=sampling_rows(layout, put, columns) if samples_few else None,
        **columns,
    )


def sampling_rows(layout: Layout, put: Put, columns: dict[str, Any] | None = None) -> Batch:
    """Bring the sampling tokens to the device, each as a row of its own that decodes."""
    tokens, rows, count = layout.sample_tokens, list(layout.samplers), len(layout.samplers)
    return Batch(
        token_ids=put(layout.token_ids[tokens]),
        positions=put(layout.positions[tokens]),
        slots=put(layout.slots[tokens]),
        row_of_token=put(np.arange(count, dtype=np.int32)),
        context_lens=put(layout.context_lens[rows]),
        block_tables=put(layout.tables[rows]),
        num_decodes=count,
        chunks=None,
        max_query_len=1,
        sample_tokens=put(np.arange(count, dtype=np.int64)),
        **(_sampling_columns(layout, put) if columns is None else columns),
    )


def _sampling_columns(layout: Layout, put: Put) -> dict[str, Any]:
    rows = list(layout.samplers.values())
    sampling = [row.sequence.request.sampling for row in rows]

    def column(values: list[int] | list[float], dtype: type[np.generic]) -> torch.Tensor:
        return put(np.array(values, dtype=dtype))

    return {
        "temperature": column([each.temperature for each in sampling], np.float32),
        "top_k": column([each.top_k for each in sampling], np.int32),
        "top_p": column([each.top_p for each in sampling], np.float32),
        "min_p": column([each.min_p for each in sampling], np.float32),
        "seeds": column([signed(row.sequence.seed) for row in rows], np.int64),
        "output_positions": column([row.output_position for row in rows], np.int64),
        "banned": tuple((at, row.banned_token_ids) for at, row in enumerate(rows) if row.banned_token_ids),
    }


def signed(seed: int) -> int:
    """Return the two's complement of an unsigned 64-bit seed."""
    return seed - 2**64 if seed >= 2**63 else seed


def _leading_ones(counts: Array) -> int:
    more = np.flatnonzero(counts != 1)
    return int(more[0]) if len(more) else len(counts)
