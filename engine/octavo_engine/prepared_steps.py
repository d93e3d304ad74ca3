"""The steps that a GPU's runner replays, by size: captured while nobody waits, or when they are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import structlog
import torch
from octavo_kernels.decode_plan import plan_sizes

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Layout, build_batch, widest_table
from octavo_engine.chunk_step import ChunkShape, ChunkStep, chunk_shape, most_captured_tokens, usual_chunk_shapes
from octavo_engine.decode_step import DecodeStep, Shape, padded_size, step_sizes
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Row, StepPlan
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Upload
from octavo_engine.warm_up import chunks_plan, penalty_plan, warm_up_plans

_LEAST_WIDTH_TOKENS: Final = 1024
_USUAL_WIDTHS: Final = 3  # of steps of decodes: contexts of up to 4096 tokens
# Of steps with chunks. An exact step pays for pieces of context that its table has room for and its decodes do not have.
_CHUNK_WIDTHS_TOKENS: Final = (2048, 4096)
_REHEARSED_TOKENS: Final = (100, 500, 1000, 1 << 30)  # of a chunk; the last stands for the most
_MIXED_TOKENS: Final = 512  # of a rehearsed step with chunks and decodes
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
        self._max_len, self._max_step_tokens = max_len, max_step_tokens
        self._most_tokens = min(max_step_tokens, max_len * max_sequences)
        self.most_captured_tokens = most_captured_tokens(decoder.config)
        self._decode_steps: dict[Shape, DecodeStep] = {}
        self._chunk_steps: dict[ChunkShape, ChunkStep] = {}
        self._num_captured = 0
        self._waiting: list[Shape | ChunkShape] = []  # the last one is prepared first
        if pool is not None:
            for length in reversed(_CHUNK_WIDTHS_TOKENS):
                self._waiting += self._usual_chunk_shapes(length, self.most_captured_tokens)
            self._waiting += [Shape(size, width) for width in self._usual_widths() for size in self._usual_sizes()]

    @property
    def is_complete(self) -> bool:
        """Whether all usual steps are prepared."""
        return not self._waiting

    def prepare_next(self) -> None:
        """Capture a step of one more size."""
        usual = self._waiting.pop()
        if isinstance(usual, Shape):
            self._decode_step_of(usual)
            return
        step = self._chunk_step_of(usual)
        if not step.is_tried:
            self._capture(step)

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

    def rehearse_lone(self) -> None:
        """Launch every kernel that the steps of a lone request need, on padding.

        It writes no page, but slots forget who has them.
        """
        page_size = self._state.page_size
        lengths = {min(length, self._most_tokens) for length in _REHEARSED_TOKENS}
        lengths.update(self._ops.usual_sizes(self._most_tokens))
        chunks = (chunks_plan(length, self._max_len, page_size) for length in sorted(lengths))
        for plan in (*warm_up_plans(), *chunks):
            self._rehearse_plan(plan)
        self._state.forget()
        DecodeStep(self._decoder, self._ops, self._state, Shape(1, self._usual_widths()[0])).rehearse()

    def rehearse_others(self) -> None:
        """Launch every kernel that further usual steps need; otherwise as `rehearse_lone`. No sequence has a slot."""
        self._rehearse_plan(penalty_plan())
        self._state.forget()
        if any(shape.penalizes for shape in self._decode_steps):
            self._state.penalties.vacate()  # requests came before; the steps captured for them count where they did
        else:
            self._state.penalties.release()
        # The widest usual table needs all that narrower ones do: its contexts are folded by a kernel of their own.
        width = self._usual_widths()[0]
        for size in self._usual_sizes():
            DecodeStep(self._decoder, self._ops, self._state, Shape(size, width)).rehearse()
        for size in plan_sizes(self._most_decodes) if self._ops.shared_members else ():
            DecodeStep(self._decoder, self._ops, self._state, Shape(size, width, shares=True)).rehearse()
        mixed = self._usual_chunk_shapes(_CHUNK_WIDTHS_TOKENS[-1], _MIXED_TOKENS)
        for shape in mixed:
            if shape.tokens == mixed[-1].tokens:
                ChunkStep(self._decoder, self._state, shape, self._buffer).rehearse()

    def _rehearse_plan(self, plan: StepPlan) -> None:
        longest = max(row.start + row.num_tokens for row in plan.rows)
        width = min(widest_table(longest, self._state.page_size), self._state.max_pages)
        tables = np.zeros((len(plan.rows), width), dtype=np.int32)
        upload = Upload(self._buffer)
        batch = build_batch(plan, self._state.page_size, tables, upload.put)
        self._state.forget()
        for row in plan.rows:
            self._state.meet(row)
        if self._state.penalties.concern(plan.rows):
            slots = torch.tensor([row.slot for row in plan.rows], device=self._buffer.device)
            batch = dataclasses.replace(batch, penalties=self._state.penalties.columns(plan.rows, slots, upload.put))
        upload.send()
        self._ops.copy_pages(((-1, -1),))
        logits = self._decoder.sketch().forward(dataclasses.replace(batch, slots=torch.full_like(batch.slots, -1)))
        assert logits is not None  # noqa: S101 - its rows sample
        self._ops.sample(logits, batch)

    def close(self) -> None:
        """Give graphs and their memory back. No further step may run."""
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
            if self._num_captured == 0:
                self._pool = None  # a pool ends with the last of its graphs
        else:
            self._num_captured += 1

    def _width_for(self, num_tokens: int) -> int:
        """Return the pages of a block table that holds so many tokens, rounded up to few different widths."""
        tokens = _LEAST_WIDTH_TOKENS
        while tokens < num_tokens:
            tokens *= 2
        return min(-(-tokens // self._state.page_size), self._state.max_pages)

    def _usual_chunk_shapes(self, length: int, most_tokens: int) -> list[ChunkShape]:
        """Return sizes of steps with chunks over contexts of up to so many tokens, the largest one last."""
        return usual_chunk_shapes(self._width_for(length), most_tokens, self._most_decodes, self._max_step_tokens)

    def _usual_sizes(self) -> list[int]:
        """Return the rows of steps of decodes, ascending: the largest is prepared first, and makes room for the others."""
        return step_sizes(self._most_decodes)

    def _usual_widths(self) -> list[int]:
        """Return the pages of their block tables, the widest first."""
        lengths = [_LEAST_WIDTH_TOKENS << power for power in range(_USUAL_WIDTHS)]
        return sorted({self._width_for(min(length, self._max_len)) for length in lengths}, reverse=True)
