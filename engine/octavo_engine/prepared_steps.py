"""The steps that a GPU's runner replays, by size: captured while nobody waits, or when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import structlog
import torch

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Layout, build_batch, widest_table
from octavo_engine.chunk_step import ChunkShape, ChunkStep, chunk_shape, most_captured_tokens, usual_chunk_shapes
from octavo_engine.decode_step import DecodeStep, Shape, padded_size, step_sizes
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Row
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Upload
from octavo_engine.warm_up import chunk_plan

_LEAST_WIDTH_TOKENS: Final = 1024
_USUAL_WIDTHS: Final = 3  # of steps of decodes: contexts of up to 4096 tokens
# Of steps with chunks. An exact step pays for pieces of context that its table has room for and its decodes do not have.
_CHUNK_WIDTHS_TOKENS: Final = (2048, 4096)
_MOST_CHUNK_STEPS: Final = 384  # each keeps megabytes; usual ones are some 140 to 210

_log = structlog.get_logger()


class PreparedSteps:
    """Steps by size. All methods are called on the stream that steps run on.

    Args:
        decoder, ops: the model.
        state: the slots that rows refer to.
        buffer: uint8 on the device, where the columns of steps with chunks are uploaded to.
        max_sequences: most rows of a step.
        max_len: most tokens of a sequence.
        max_step_tokens: most tokens of a step.
        pool: memory that graphs share; None: nothing is captured, and every step runs as it is (no GPU).

    Attributes:
        most_captured_tokens: of a step with chunks; larger ones run as they are.
    """

    def __init__(
        self,
        decoder: Decoder,
        ops: Ops,
        state: SlotState,
        buffer: torch.Tensor,
        *,
        max_sequences: int,
        max_len: int,
        max_step_tokens: int,
        pool: Any,
    ) -> None:
        self._decoder, self._ops = decoder, ops
        self._state, self._buffer = state, buffer
        self._pool = pool
        self._most_decodes = padded_size(max_sequences)
        self.most_captured_tokens = most_captured_tokens(decoder.config)
        self._decode_steps: dict[Shape, DecodeStep] = {}
        self._chunk_steps: dict[ChunkShape, ChunkStep] = {}
        self._waiting: list[Shape | ChunkShape | int] = []  # the last one is prepared first
        if pool is not None:
            for length in reversed(_CHUNK_WIDTHS_TOKENS):
                self._waiting += usual_chunk_shapes(
                    self._width_for(length), self.most_captured_tokens, self._most_decodes, max_step_tokens
                )
            self._waiting += self._usual_shapes(max_sequences, max_len)
            self._waiting += ops.usual_sizes(min(max_step_tokens, max_len))

    @property
    def is_complete(self) -> bool:
        """Whether all usual steps are prepared."""
        return not self._waiting

    def prepare_next(self) -> None:
        """Prepare one more size: capture a step, or load what an uncaptured one of so many prompt tokens needs."""
        usual = self._waiting.pop()
        if isinstance(usual, Shape):
            self._decode_step_of(usual)
        elif isinstance(usual, ChunkShape):
            step = self._chunk_step_of(usual)
            if not step.is_tried:
                self._capture(step)
        else:
            self.load_kernels(usual)

    def decode_step(self, rows: Sequence[Row], *, shares: bool, penalizes: bool) -> DecodeStep:
        """Return the step for rows of one token each, captured if it can be."""
        width = self._width_for(max(row.start for row in rows) + 1)
        return self._decode_step_of(Shape(padded_size(len(rows)), width, shares, penalizes))

    def chunk_step(self, layout: Layout) -> ChunkStep | None:
        """Return the step for a layout with chunks, captured when its size is asked for a second time.

        None: it runs as it is, for it has no chunks, or too many chunks or tokens, or there are too many sizes already.
        """
        width = self._width_for(max(int(layout.context_lens.max()), _CHUNK_WIDTHS_TOKENS[0]))
        shape = chunk_shape(layout, width, self.most_captured_tokens, self._most_decodes)
        if shape is None:
            return None
        step = self._chunk_steps.get(shape)
        if step is None:
            return self._chunk_step_of(shape) if len(self._chunk_steps) < _MOST_CHUNK_STEPS else None
        if self._pool is not None and not step.is_tried:
            self._capture(step)
        return step

    def load_kernels(self, num_tokens: int) -> None:
        """Compute a chunk of so many tokens that nobody asked for, and write none of its keys and values."""
        plan = chunk_plan(num_tokens, self._state.page_size)
        upload = Upload(self._buffer)
        width = min(widest_table(num_tokens, self._state.page_size), self._state.max_pages)
        tables = np.zeros((1, width), dtype=np.int32)
        batch = build_batch(plan, self._state.page_size, tables, upload.put)
        upload.send()
        logits = self._decoder.forward(dataclasses.replace(batch, slots=torch.full_like(batch.slots, -1)))
        assert logits is not None  # noqa: S101 - its last token samples
        self._ops.sample(logits, batch)

    def close(self) -> None:
        """Give graphs and their memory back."""
        self._decode_steps.clear()
        self._chunk_steps.clear()

    def _decode_step_of(self, shape: Shape) -> DecodeStep:
        step = self._decode_steps.get(shape)
        if step is None:
            step = self._decode_steps[shape] = DecodeStep(self._decoder, self._ops, self._state, shape)
            if self._pool is not None:
                self._capture(step)
        return step

    def _chunk_step_of(self, shape: ChunkShape) -> ChunkStep:
        step = self._chunk_steps.get(shape)
        if step is None:
            step = self._chunk_steps[shape] = ChunkStep(self._decoder, self._state, shape, self._buffer)
        return step

    def _capture(self, step: DecodeStep | ChunkStep) -> None:
        """Capture a step. If memory is short it runs uncaptured, and no further ones are prepared."""
        try:
            step.capture(self._pool)
        except torch.cuda.OutOfMemoryError:
            _log.warning("step_not_captured", size=str(step.shape), reason="out of memory")
            self._waiting.clear()

    def _width_for(self, num_tokens: int) -> int:
        """Return the pages of a block table that holds so many tokens, rounded up to few different widths."""
        tokens = _LEAST_WIDTH_TOKENS
        while tokens < num_tokens:
            tokens *= 2
        return min(-(-tokens // self._state.page_size), self._state.max_pages)

    def _usual_shapes(self, max_sequences: int, max_len: int) -> list[Shape]:
        """Return sizes of steps of decodes.

        Of one width the largest is last, so prepared first: its temporary tensors make room for those of the others.
        """
        lengths = [_LEAST_WIDTH_TOKENS << power for power in range(_USUAL_WIDTHS)]
        widths = sorted({self._width_for(min(length, max_len)) for length in lengths}, reverse=True)
        return [Shape(size, width) for width in widths for size in step_sizes(max_sequences)]
