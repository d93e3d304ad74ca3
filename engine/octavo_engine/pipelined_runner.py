"""Runs plans on a GPU one step ahead: a step is queued while the one before computes, and reads its tokens by slot.

Steps of decodes alone replay a CUDA graph, captured when its size is first asked for. So do the layers of steps with
prefill chunks, unless they have so many tokens that launches hide behind them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import numpy as np
import torch
from octavo_kernels.step_inputs import ban_tokens

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Array, Batch, Layout, batch_of, build_batch, lay_out, sampling_rows
from octavo_engine.chunk_step import ChunkShape, ChunkStep, chunk_shape, most_captured_tokens, usual_chunk_shapes
from octavo_engine.decode_step import MAX_BANS, DecodeStep, Shape, padded_size, step_sizes
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Row, Sampled, StepPlan
from octavo_engine.shared_prefixes import SharedFinder
from octavo_engine.slot_state import WIDTH_STEP, SlotState
from octavo_engine.transfer import Download, Upload
from octavo_engine.warm_up import chunk_plan, penalty_plan, warm_up_plans

_LEAST_WIDTH_TOKENS: Final = 1024
_WARM_SIZES: Final = (100, 500, 1000, 1 << 30)  # tokens of a chunk; the last stands for the largest
_WARM_WIDTHS: Final = 3  # of block tables: contexts up to 4096 tokens
# Of steps with chunks. Twice as wide, and an exact step pays for the chunks of context that its decodes do not have.
_CHUNK_WIDTHS_TOKENS: Final = (4096, 2048)
_WORDS_PER_ROW: Final = 320  # most of them for banned ids
_WORDS_PER_TOKEN: Final = 16


class _NoTokens:
    """A step in which no row samples."""

    def result(self) -> Sampled:
        return Sampled(token_ids=[], logprobs=[])


class PipelinedRunner:
    """A runner with two steps in flight.

    Args:
        decoder, ops: the model.
        page_size: tokens a page.
        max_sequences: slots; `ops` must be able to take `padded_size` of it in one step.
        max_len: most tokens of a sequence.
        max_step_tokens: most tokens of a step.
        device: where it runs; without a GPU (Triton's interpreter, in tests) nothing is captured.
    """

    depth = 2

    def __init__(
        self,
        decoder: Decoder,
        ops: Ops,
        *,
        page_size: int,
        max_sequences: int,
        max_len: int,
        max_step_tokens: int,
        device: torch.device,
    ) -> None:
        self._decoder, self._ops = decoder, ops
        self._page_size = page_size
        self._most_tokens = min(max_step_tokens, max_len)
        self._max_pages = -(-max_len // (WIDTH_STEP * page_size)) * WIDTH_STEP
        self._is_captured = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_captured else None  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle() if self._is_captured else None
        self._steps: dict[Shape, DecodeStep] = {}
        self._chunk_steps: dict[ChunkShape, ChunkStep] = {}
        self._most_captured = most_captured_tokens(decoder.config)
        self._most_decodes = padded_size(max_sequences)
        self._to_prepare: list[Shape | ChunkShape | int] = []
        if self._is_captured:
            for width in dict.fromkeys(map(self._chunk_width, _CHUNK_WIDTHS_TOKENS)):
                self._to_prepare += usual_chunk_shapes(width, self._most_captured, self._most_decodes, max_step_tokens)
            self._to_prepare += self._usual_shapes(max_sequences, max_len)
            self._to_prepare += (size for size in ops.usual_sizes(self._most_tokens) if size > self._most_captured)
        self._finder = SharedFinder(decoder.config, page_size)
        with self._on_stream():
            self._state = SlotState(
                num_slots=max_sequences,
                max_pages=self._max_pages,
                page_size=page_size,
                vocab_size=decoder.config.vocab_size,
                device=device,
            )
            words = max_step_tokens * _WORDS_PER_TOKEN + max_sequences * (3 * self._max_pages + _WORDS_PER_ROW) + 4096
            self._buffer = torch.empty(4 * words, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Download | _NoTokens:
        """Queue a step."""
        try:
            with self._on_stream():
                if plan.copies:
                    self._ops.copy_pages(plan.copies)
                for row in plan.rows:
                    self._state.meet(row)
                if _is_decode(plan):
                    return self._launch_decodes(plan.rows)
                return self._launch_mixed(plan)
        except BaseException:
            self._state.forget()
            raise

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile what steps of each kind and of usual sizes need, so that no request waits for it.

        Writes to page 0, which nobody holds yet.
        """
        sizes = {min(size, self._most_tokens) for size in _WARM_SIZES} if self._is_captured else ()
        for plan in (*warm_up_plans(), *(chunk_plan(size, self._page_size) for size in sizes)):
            self.launch(plan).result()
        self._state.forget()
        if self._is_captured:
            self.launch(penalty_plan()).result()
            self._state.forget()
            self._state.penalties.release()

    @property
    def is_warm(self) -> bool:
        """Whether all usual steps are prepared; the first request to need another one waits for it."""
        return not self._to_prepare

    @torch.inference_mode()
    def warm_next(self) -> None:
        """Prepare one more size: capture a step of decodes, or load what a step of so many prompt tokens needs."""
        usual = self._to_prepare.pop()
        with self._on_stream():
            if isinstance(usual, Shape):
                self._step_of(usual)
            elif isinstance(usual, ChunkShape):
                step = self._chunk_step_of(usual)
                if not step.is_tried:
                    step.capture(self._pool)
            else:
                self._load_kernels(usual)

    def close(self) -> None:
        """Give memory back."""
        self._steps.clear()
        self._chunk_steps.clear()
        self._ops.close()

    def _load_kernels(self, num_tokens: int) -> None:
        """Compute a chunk of so many tokens that nobody asked for, and write none of its keys and values."""
        plan = chunk_plan(num_tokens, self._page_size)
        upload = Upload(self._buffer)
        num_pages = -(-len(plan.rows[0].block_table) // WIDTH_STEP) * WIDTH_STEP
        tables = np.zeros((1, min(num_pages, self._max_pages)), dtype=np.int32)
        batch = build_batch(plan, self._page_size, tables, upload.put)
        upload.send()
        logits = self._decoder.forward(dataclasses.replace(batch, slots=torch.full_like(batch.slots, -1)))
        assert logits is not None  # noqa: S101 - its last token samples
        self._ops.sample(logits, batch)

    def _launch_decodes(self, rows: tuple[Row, ...]) -> Download:
        late = [row for row in rows if self._state.lacks_pages(row)]
        if late:  # a first step after a prefix hit of all but one token
            upload = Upload(self._buffer)
            tables = upload.put(self._state.block_tables(late))
            self._send_tables(late, tables, upload)
        for row in rows:
            self._state.note_decode(row)
        tiles = self._finder.find(rows)
        penalizes = self._state.penalties.concern(rows)
        return self._step_for(rows, shares=bool(tiles), penalizes=penalizes).launch(rows, tiles)

    def _launch_mixed(self, plan: StepPlan) -> Download | _NoTokens:
        rows, state = plan.rows, self._state
        upload = Upload(self._buffer)
        layout = lay_out(plan, self._page_size, state.block_tables(rows))
        step = self._chunk_step_for(layout)
        if step is None:
            whole = batch_of(layout, upload.put)
            token_ids, tables, batch = whole.token_ids, whole.block_tables, whole
        else:
            step.put(layout, rows, upload)
            token_ids, tables = step.token_ids, upload.put(layout.tables)
            batch = sampling_rows(layout, upload.put)
        samplers = list(layout.samplers.values())
        sampler_slots = upload.put(_column(row.slot for row in samplers))
        unread = [(at, row.slot) for at, row in zip(layout.query_start, rows, strict=False) if _is_unread(row)]
        unread_tokens = upload.put(_column(at for at, _ in unread))
        unread_slots = upload.put(_column(slot for _, slot in unread))
        bans = upload.put(_bans(batch))
        if state.penalties.concern(samplers):
            penalties = state.penalties.columns(samplers, sampler_slots, upload.put)
            batch = dataclasses.replace(batch, penalties=penalties)
        self._send_tables(rows, tables, upload)
        if unread:
            token_ids.index_copy_(0, unread_tokens, state.last_tokens[unread_slots])
        logits = self._decoder.forward(batch) if step is None else self._finish(step, batch)
        if logits is None:
            return _NoTokens()
        if batch.banned:
            ban_tokens(logits, bans)
        ids, logprobs = self._ops.sample(logits, batch)
        state.last_tokens.index_copy_(0, sampler_slots, ids)
        return Download(ids, logprobs, len(samplers))

    def _finish(self, step: ChunkStep, batch: Batch) -> torch.Tensor | None:
        q, residual = step.run()
        count = batch.num_decodes
        return self._decoder.finish(batch, q[:count], residual[:count]) if count else None

    def _chunk_step_for(self, layout: Layout) -> ChunkStep | None:
        """Return the step to run a layout in, captured when it is asked for a second time; None: it is too large for one."""
        width = self._chunk_width(int(layout.context_lens.max()))
        shape = chunk_shape(layout, width, self._most_captured, self._most_decodes)
        if shape is None:
            return None
        if shape not in self._chunk_steps:
            return self._chunk_step_of(shape)
        step = self._chunk_steps[shape]
        if self._is_captured and not step.is_tried:
            step.capture(self._pool)
        return step

    def _chunk_step_of(self, shape: ChunkShape) -> ChunkStep:
        step = self._chunk_steps.get(shape)
        if step is None:
            step = self._chunk_steps[shape] = ChunkStep(self._decoder, self._state, shape, self._buffer)
        return step

    def _chunk_width(self, num_tokens: int) -> int:
        return self._width_for(max(num_tokens, _CHUNK_WIDTHS_TOKENS[-1]))

    def _send_tables(self, rows: list[Row] | tuple[Row, ...], tables: torch.Tensor, upload: Upload) -> None:
        """Send what was put so far, and let the device's state have the rows' tables."""
        slots = upload.put(_column(row.slot for row in rows))
        upload.send()
        self._state.write_tables(rows, slots, tables)

    def _step_for(self, rows: tuple[Row, ...], *, shares: bool, penalizes: bool) -> DecodeStep:
        width = self._width_for(max(row.start for row in rows) + 1)
        return self._step_of(Shape(padded_size(len(rows)), width, shares, penalizes))

    def _step_of(self, shape: Shape) -> DecodeStep:
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = DecodeStep(self._decoder, self._ops, self._state, shape)
            if self._is_captured:
                step.capture(self._pool)
        return step

    def _width_for(self, num_tokens: int) -> int:
        """Return the pages of a block table that holds so many tokens, rounded up to few different widths."""
        tokens = _LEAST_WIDTH_TOKENS
        while tokens < num_tokens:
            tokens *= 2
        return min(-(-tokens // self._page_size), self._max_pages)

    def _usual_shapes(self, max_sequences: int, max_len: int) -> list[Shape]:
        """Return what `warm_next` captures, last one first.

        Of one width the largest comes first: its temporary tensors make room for those of the others.
        """
        lengths = [_LEAST_WIDTH_TOKENS << power for power in range(_WARM_WIDTHS)]
        widths = sorted({self._width_for(min(length, max_len)) for length in lengths}, reverse=True)
        return [Shape(size, width) for width in widths for size in step_sizes(max_sequences)]

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _is_decode(plan: StepPlan) -> bool:
    """Tell whether a captured step can compute a plan: one sampling token a row, few banned ids."""
    if sum(len(row.banned_token_ids) for row in plan.rows) > MAX_BANS:
        return False
    return all(row.num_tokens == 1 and row.samples for row in plan.rows)


def _is_unread(row: Row) -> bool:
    return row.start >= len(row.sequence.tokens)


def _column(values: Iterator[int]) -> Array:
    return np.fromiter(values, dtype=np.int64)


def _bans(batch: Batch) -> Array:
    pairs = [(row, token_id) for row, token_ids in batch.banned for token_id in token_ids]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2).T
