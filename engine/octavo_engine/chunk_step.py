"""The layers of a step with prefill chunks as a CUDA graph: all of the model before the last layer's attention.

Launched one by one, the kernels of such a step keep a host busy for tens of milliseconds, longer than a GPU needs for a
thousand tokens. What differs from step to step stands in columns on the device; sampling, which depends on how many rows
sample, stays outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from octavo_engine.batch import Array, Chunks, Inputs, Layout
from octavo_engine.graph import captured
from octavo_engine.models.config import ModelConfig
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Row
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Upload

MAX_CHUNKS: Final = 64
"""Most chunks of a captured step."""

_CHUNK_ROWS: Final = MAX_CHUNKS + 1  # the one behind the last chunk, of a context of 0 tokens, holds all padding
# Steps that also decode are cut to multiples of 256 tokens; those that do not end wherever their prompts end.
_TOKENS: Final = (
    *(32, 64), *range(128, 1024, 128), *range(1024, 2048, 256), *range(2048, 4096, 512), *range(4096, 8193, 1024)
)  # fmt: skip
_DECODES: Final = (0, 16, 64, 128, 256, 512)
_DECODES_STEP: Final = 256  # beyond the last of them
_USUAL_DECODES: Final = 256
# A layer's launches take a slow host half as long. Where the device needs longer for a layer, launches hide behind it, and
# padding would cost more than they do.
_LAYER_S: Final = 2e-3
_FLOP_S: Final = 600e12  # of an H100 or H200 in products of many rows; a slower device hides launches earlier still


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """What a captured step with chunks is made for.

    Attributes:
        tokens: most tokens, of decodes and chunks together.
        decodes: most decodes.
        width: most pages of a row.
    """

    tokens: int
    decodes: int
    width: int


def chunk_shape(layout: Layout, width: int, most_tokens: int, most_decodes: int) -> ChunkShape | None:
    """Return the smallest shape that holds a step; None if there is none: it runs uncaptured.

    Args:
        layout: the step.
        width: most pages of a row.
        most_tokens: of a captured step.
        most_decodes: that any step has.
    """
    num_decodes = layout.num_decodes
    num_chunks = len(layout.context_lens) - num_decodes
    decodes = min(_padded_decodes(num_decodes), most_decodes)
    tokens = _padded_tokens(max(len(layout.positions), decodes))
    if not 0 < num_chunks <= MAX_CHUNKS or tokens is None or tokens > most_tokens:
        return None
    return ChunkShape(tokens, decodes, width)


def usual_chunk_shapes(width: int, most_tokens: int, most_decodes: int, step_tokens: int) -> list[ChunkShape]:
    """Return the shapes to prepare before they are needed.

    The largest is last, to be prepared first: its temporary tensors make room for those of the others.

    Args:
        width: most pages of a row.
        most_tokens: of a captured step.
        most_decodes: that any step has; unusually many are left out.
        step_tokens: most tokens of any step.
    """
    largest = min(most_tokens, _padded_tokens(step_tokens) or most_tokens)
    decodes = sorted({min(size, most_decodes) for size in _DECODES if size <= _USUAL_DECODES})
    return [
        ChunkShape(tokens, size, width) for tokens in _TOKENS if tokens <= largest for size in decodes if size <= tokens
    ]


def most_captured_tokens(config: ModelConfig) -> int:
    """Return the tokens of a step beyond which a device computes a layer for longer than a host launches it."""
    heads = config.num_heads * config.head_dim
    weights = config.hidden_size * (
        2 * heads + 2 * config.num_kv_heads * config.head_dim + 3 * config.intermediate_size
    )
    return int(_LAYER_S * _FLOP_S / (2 * weights))


class ChunkStep:
    """A step of decodes and chunks, up to the last layer's attention.

    Args:
        decoder: the model.
        state: the slots that rows refer to.
        shape: its size; smaller steps are padded.
        buffer: uint8 on the device, where its columns are uploaded to: the first of their step.

    Attributes:
        is_tried: whether it was captured, or failed to be: one that did not fit into memory runs as it is.
    """

    def __init__(self, decoder: Decoder, state: SlotState, shape: ChunkShape, buffer: torch.Tensor) -> None:
        self._decoder, self._state, self._buffer = decoder, state, buffer
        self.shape = shape
        self._columns = self._send_padding()
        self._outputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.is_tried = False

    @property
    def token_ids(self) -> torch.Tensor:
        """[tokens] int64 on the device: where tokens that the host has not read are filled in before the step runs."""
        return self._columns[0]

    def capture(self, pool: Any) -> None:
        """Capture the step on the current stream; its temporary tensors come from a pool that graphs share."""
        self.is_tried = True
        self.rehearse()  # loads what must not be loaded in a capture
        self._graph, self._outputs = captured(lambda: self._compute(self._decoder), pool)

    def rehearse(self) -> None:
        """Launch every kernel of the step, on padding: it changes nobody's state."""
        self._send_padding()
        self._compute(self._decoder.sketch())

    def put(self, layout: Layout, rows: Sequence[Row], upload: Upload) -> None:
        """Put a step's columns: the first ones of its upload."""
        slots = np.fromiter((row.slot for row in rows), dtype=np.int64, count=len(rows))
        for column in self._padded(layout, slots):
            upload.put(column)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queue the step, once its columns and its rows' block tables are on their way.

        Returns:
            Of the sampling tokens and padding: the last layer's queries [B, H * D], and the residual stream [B, hidden].
        """
        if self._graph is None or self._outputs is None:
            return self._compute(self._decoder)
        self._graph.replay()
        return self._outputs

    def _send_padding(self) -> list[torch.Tensor]:
        """Upload the columns of a step without rows, in place of whatever step used the buffer last; return them."""
        upload = Upload(self._buffer)
        columns = [upload.put(column) for column in self._padded(_nothing(), np.zeros(0, dtype=np.int64))]
        upload.send()
        return columns

    def _padded(self, layout: Layout, row_slots: Array) -> list[Array]:
        tokens, decodes = self.shape.tokens, self.shape.decodes
        split, starts, padding = layout.num_decodes, layout.query_start, self._state.padding
        return [
            _filled(layout.token_ids, tokens, 0),
            _filled(layout.positions, tokens, 0),
            _filled(layout.slots, tokens, -1),
            _filled(layout.sample_tokens, decodes + MAX_CHUNKS, 0),
            _filled(row_slots[:split], decodes, padding),
            _filled(row_slots[split:], _CHUNK_ROWS, padding),
            _filled(layout.context_lens[:split], decodes, -1),
            _filled(layout.context_lens[split:], _CHUNK_ROWS, 0),
            _filled(starts[split:], _CHUNK_ROWS + 1, tokens),
        ]

    def _compute(self, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
        shape, tables = self.shape, self._state.tables[:, : self.shape.width]
        token_ids, positions, slots, sample_tokens, decode_slots, chunk_slots, decode_lens, chunk_lens, starts = (
            self._columns
        )
        inputs = Inputs(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            row_of_token=None,
            context_lens=decode_lens,
            block_tables=tables.index_select(0, decode_slots),
            num_decodes=shape.decodes,
            chunks=Chunks(
                query_start=starts, context_lens=chunk_lens, block_tables=tables.index_select(0, chunk_slots)
            ),
            max_query_len=shape.tokens,
        )
        q, residual = decoder.body(inputs)
        return q.index_select(0, sample_tokens), residual.index_select(0, sample_tokens)


def _padded_tokens(num_tokens: int) -> int | None:
    return next((size for size in _TOKENS if size >= num_tokens), None)


def _padded_decodes(num_decodes: int) -> int:
    return next((size for size in _DECODES if size >= num_decodes), -(-num_decodes // _DECODES_STEP) * _DECODES_STEP)


def _filled(values: Array, size: int, padding: int) -> Array:
    column = np.full(size, padding, dtype=values.dtype)
    column[: len(values)] = values
    return column


def _nothing() -> Layout:
    none = np.zeros(0, dtype=np.int64)
    few = np.zeros(1, dtype=np.int32)
    return Layout(
        token_ids=none, positions=none, slots=none, query_start=few, context_lens=few[:0], tables=few.reshape(1, 1),
        num_decodes=0, samplers={},
    )  # fmt: skip
