"""One step of decoding sequences as a CUDA graph: inputs, model, sampling, and the tokens that feed the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from octavo_kernels.cascade import SharedTile
from octavo_kernels.decode_plan import plan_decode
from octavo_kernels.step_inputs import ROW_WORDS, ban_tokens, decode_inputs

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import UNKNOWN_TOKEN, Array, Batch, Penalties
from octavo_engine.graph import captured
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Row
from octavo_engine.shared_prefixes import SharedPrefixes, num_words
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Download, pinned

MAX_BANS: Final = 128
"""Most banned (row, id) pairs in a captured step; a step with more runs uncaptured."""

_SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_SIZE_STEP: Final = 64  # beyond the last of them
_ALIGNED_WORDS: Final = 4  # columns start at multiples of 16 bytes
_FREQUENCY, _PRESENCE, _REPETITION = range(3)  # columns of a step with penalties
_NUM_PENALTIES: Final = 3


def padded_size(num_rows: int) -> int:
    """Return the size of the captured step that so many rows run in."""
    for size in _SIZES:
        if num_rows <= size:
            return size
    return -(-num_rows // _SIZE_STEP) * _SIZE_STEP


def step_sizes(max_rows: int) -> list[int]:
    """Return the sizes of all steps of up to so many rows, ascending."""
    return sorted({padded_size(num_rows) for num_rows in range(1, max_rows + 1)})


@dataclass(frozen=True, slots=True)
class Shape:
    """What a captured step is made for.

    Attributes:
        size: most rows.
        width: most pages of a row.
        shares: whether rows have prefixes in common.
        penalizes: whether rows have penalties.
    """

    size: int
    width: int
    shares: bool = False
    penalizes: bool = False


class DecodeStep:
    """A step of up to `shape.size` rows with one token each; smaller steps are padded.

    Args:
        decoder, ops: the model.
        state: the slots that rows refer to.
        shape: its size.
    """

    def __init__(self, decoder: Decoder, ops: Ops, state: SlotState, shape: Shape) -> None:
        self._decoder, self._ops, self._state = decoder, ops, state
        self.shape = shape
        size, device = shape.size, state.tables.device
        shared_words = num_words(size, ops.shared_members) if shape.shares else 0
        self._columns = _Columns(size, shared_words, penalizes=shape.penalizes)
        self._packed = torch.zeros(self._columns.num_words, dtype=torch.int32, device=device)
        self._rows = self._columns.rows(self._packed)
        self._bans = self._columns.bans(self._packed)
        # Padding throughout: a rehearsal must change nobody's state.
        self._rows[0].fill_(state.padding)
        self._rows[1].fill_(-1)
        self._bans.fill_(-1)
        if shape.penalizes:
            self._columns.penalty(self._packed, _REPETITION).fill_(1)
        self._shared: SharedPrefixes | None = None
        if shape.shares:
            words = self._columns.shared(self._packed)
            max_len = shape.width * state.page_size
            self._shared = SharedPrefixes(decoder.config, size, ops.shared_members, max_len, words)
        self._slots = torch.zeros(size, dtype=torch.int64, device=device)
        self._batch = self._static_batch(device)
        self._ids = torch.zeros(size, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(size, dtype=torch.float32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self, pool: Any) -> None:
        """Capture the step on the current stream; its temporary tensors come from a pool that graphs share."""
        self.rehearse()  # loads what must not be loaded in a capture
        self._graph, _ = captured(lambda: self._compute(self._decoder), pool)

    def rehearse(self) -> None:
        """Launch every kernel of the step, on padding, as long as it has not run: it changes nobody's state."""
        self._compute(self._decoder.sketch())

    def launch(self, rows: Sequence[Row], tiles: Sequence[SharedTile] = ()) -> Download:
        """Queue the step for rows that the state has met, with the prefixes that they share."""
        host = pinned(4 * self._columns.num_words, self._packed.device).view(torch.int32)
        self._columns.fill(host.numpy(), rows, self._state)
        if self._shared is not None:
            self._shared.fill(self._columns.shared(host).numpy(), tiles)
        self._packed.copy_(host, non_blocking=True)
        if self._graph is None:
            self._compute(self._decoder)
        else:
            self._graph.replay()
        return Download(self._ids, self._logprobs, len(rows))

    def _compute(self, decoder: Decoder) -> None:
        state, batch = self._state, self._batch
        decode_inputs(
            self._rows, state.last_tokens, state.tables, state.page_size, batch.token_ids, batch.positions, batch.slots,
            batch.context_lens, batch.output_positions, self._slots, batch.block_tables,
        )  # fmt: skip
        if self._shared is not None:
            plan_decode(self._shared.plan, batch.context_lens)
        logits = decoder.forward(batch)
        assert logits is not None  # noqa: S101 - every row samples
        ban_tokens(logits, self._bans)
        ids, logprobs = self._ops.sample(logits, batch)
        state.last_tokens.index_copy_(0, self._slots, ids)
        self._ids.copy_(ids)
        self._logprobs.copy_(logprobs)

    def _static_batch(self, device: torch.device) -> Batch:
        size, width = self.shape.size, self.shape.width

        def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        columns = self._columns
        return Batch(
            token_ids=zeros(torch.int64, size),
            positions=zeros(torch.int64, size),
            slots=zeros(torch.int64, size),
            row_of_token=None,
            context_lens=zeros(torch.int32, size),
            block_tables=zeros(torch.int32, size, width),
            num_decodes=size,
            chunks=None,
            max_query_len=1,
            sample_tokens=torch.arange(size, dtype=torch.int64, device=device),
            temperature=columns.floats(self._packed, 0),
            top_k=columns.integers(self._packed),
            top_p=columns.floats(self._packed, 1),
            min_p=columns.floats(self._packed, 2),
            seeds=columns.seeds(self._packed),
            output_positions=zeros(torch.int64, size),
            banned=(),
            shared=None if self._shared is None else self._shared.plan,
            penalties=self._static_penalties() if self.shape.penalizes else None,
        )

    def _static_penalties(self) -> Penalties:
        columns, words = self._columns, self._packed
        return Penalties(
            tallies=self._state.penalties.tallies,
            slots=self._slots,
            frequency=columns.penalty(words, _FREQUENCY),
            presence=columns.penalty(words, _PRESENCE),
            repetition=columns.penalty(words, _REPETITION),
        )


class _Columns:
    """Where each column of a step stands among the words that the host uploads for it."""

    def __init__(self, size: int, shared_words: int, *, penalizes: bool) -> None:
        self._size = size
        self._stride = -(-size // _ALIGNED_WORDS) * _ALIGNED_WORDS
        self._rows_at = 2 * self._stride
        self._integers_at = self._rows_at + ROW_WORDS * self._stride
        self._floats_at = self._integers_at + self._stride
        self._bans_at = self._floats_at + 3 * self._stride
        self._penalties_at = self._bans_at + 2 * MAX_BANS
        self._num_penalties = _NUM_PENALTIES if penalizes else 0
        self._shared_at = self._penalties_at + self._num_penalties * self._stride
        self.num_words = self._shared_at + shared_words

    def seeds(self, words: torch.Tensor) -> torch.Tensor:
        return words[: 2 * self._size].view(torch.int64)

    def rows(self, words: torch.Tensor) -> torch.Tensor:
        return words[self._rows_at : self._integers_at].view(ROW_WORDS, self._stride)[:, : self._size]

    def integers(self, words: torch.Tensor) -> torch.Tensor:
        return words[self._integers_at : self._integers_at + self._size]

    def floats(self, words: torch.Tensor, index: int) -> torch.Tensor:
        start = self._floats_at + index * self._stride
        return words[start : start + self._size].view(torch.float32)

    def bans(self, words: torch.Tensor) -> torch.Tensor:
        return words[self._bans_at : self._penalties_at].view(2, MAX_BANS)

    def penalty(self, words: torch.Tensor, index: int) -> torch.Tensor:
        start = self._penalties_at + index * self._stride
        return words[start : start + self._size].view(torch.float32)

    def shared(self, words: torch.Tensor) -> torch.Tensor:
        return words[self._shared_at :]

    def fill(self, words: Array, rows: Sequence[Row], state: SlotState) -> None:
        """Write a step's columns, padded to the full size."""
        count, stride, page_size = len(rows), self._stride, state.page_size
        slots = np.full(self._size, state.padding, dtype=np.int32)
        slots[:count] = [row.slot for row in rows]
        words[: 2 * self._size].view(np.int64)[:] = state.seeds[slots]
        columns = words[self._rows_at : self._integers_at].reshape(ROW_WORDS, stride)
        columns[0, : self._size] = slots
        columns[1, count:] = -1
        columns[1:, :count] = np.array(
            [
                [row.start for row in rows],
                [row.block_table[row.start // page_size] for row in rows],
                [_token(row) for row in rows],
                [row.output_position for row in rows],
            ],
            dtype=np.int32,
        )
        columns[2:, count:] = 0
        words[self._integers_at : self._integers_at + self._size] = state.top_k[slots]
        for index, values in enumerate((state.temperature, state.top_p, state.min_p)):
            start = self._floats_at + index * stride
            words[start : start + self._size].view(np.float32)[:] = values[slots]
        penalties = (state.penalties.frequency, state.penalties.presence, state.penalties.repetition)
        for index, values in enumerate(penalties[: self._num_penalties]):
            start = self._penalties_at + index * stride
            words[start : start + self._size].view(np.float32)[:] = values[slots]
        bans = words[self._bans_at : self._penalties_at].reshape(2, MAX_BANS)
        bans[0] = -1
        pairs = [(index, token_id) for index, row in enumerate(rows) for token_id in row.banned_token_ids]
        if pairs:
            bans[:, : len(pairs)] = np.array(pairs, dtype=np.int32).T


def _token(row: Row) -> int:
    tokens = row.sequence.tokens
    return tokens[row.start] if row.start < len(tokens) else UNKNOWN_TOKEN
