"""Runs plans on a GPU one step ahead: a step is queued while the one before computes, and reads its tokens by slot.

Steps of decodes alone replay a CUDA graph; so do the layers of steps with prefill chunks, unless they have so many tokens
that launches hide behind them. Graphs are captured while the engine is idle, or when a size is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Final

import numpy as np
import torch
from octavo_kernels.compile_ahead import Compiling, compile_ahead
from octavo_kernels.step_inputs import ban_tokens

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Array, Batch, batch_of, lay_out, sampling_rows, widest_table
from octavo_engine.chunk_step import ChunkStep
from octavo_engine.decode_step import MAX_BANS
from octavo_engine.models.decoder import Decoder
from octavo_engine.prepared_steps import PreparedSteps
from octavo_engine.sequence import Row, Sampled, StepPlan
from octavo_engine.shared_prefixes import SharedFinder
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Download, Upload
from octavo_engine.warm_up import warm_up_plans

# Words of the buffer that a step's columns are uploaded to; a step with chunks is padded, up to twice its tokens.
_WORDS_PER_ROW: Final = 320  # most of them for banned ids
_WORDS_PER_TOKEN: Final = 16
_WORDS_MORE: Final = 4096  # what padding to the smallest sizes takes
_MOMENT_S: Final = 0.05  # of waiting for a compiler; requests come in between


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

    Attributes:
        prepared: the steps that it replays.
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
        self._is_captured = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._is_captured else None  # type: ignore[no-untyped-call]
        self._compiling: Compiling | None = None
        self._finder = SharedFinder(ops.shared_members, page_size)
        max_pages = widest_table(max_len, page_size)
        with self._on_stream():
            self._state = SlotState(
                num_slots=max_sequences,
                max_pages=max_pages,
                page_size=page_size,
                vocab_size=decoder.config.vocab_size,
                device=device,
            )
            words = max_step_tokens * _WORDS_PER_TOKEN + max_sequences * (3 * max_pages + _WORDS_PER_ROW) + _WORDS_MORE
            self._buffer = torch.empty(4 * words, dtype=torch.uint8, device=device)
        self.prepared = PreparedSteps(
            decoder,
            ops,
            self._state,
            self._buffer,
            max_sequences=max_sequences,
            max_len=max_len,
            max_step_tokens=max_step_tokens,
            pool=torch.cuda.graph_pool_handle() if self._is_captured else None,
        )

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
    def compile(self) -> None:
        """Compile what a lone request needs; what other usual steps need is still on its way then.

        The decoder's sketch suffices. Many kernels are compiled side by side, and nobody needs all of them at first.
        """
        if self._is_captured:
            with self._on_stream():
                self._compiling = compile_ahead(self.prepared.rehearse_lone, self.prepared.rehearse_others)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run the steps of a lone request, of any length, so that it does not wait for what they load.

        Writes to page 0, which nobody holds yet.
        """
        if self._is_captured:
            with self._on_stream():
                self.prepared.rehearse_lone()
        for plan in warm_up_plans():
            self.launch(plan).result()
        self._state.forget()

    @property
    def is_warm(self) -> bool:
        """Whether all usual steps are prepared; the first request to need another one waits for it."""
        return self._compiling is None and self.prepared.is_complete

    @torch.inference_mode()
    def warm_next(self) -> None:
        """Prepare steps of one more size, or wait a moment for kernels that are still being compiled."""
        with self._on_stream():
            if self._compiling is None:
                self.prepared.prepare_next()
            elif self._compiling.ends_within(_MOMENT_S):
                with closing(self._compiling) as compiled:
                    self._compiling = None
                    compiled.result()
                self.prepared.rehearse_others()

    def close(self) -> None:
        """Give memory back."""
        if self._compiling is not None:
            self._compiling.close()
        self.prepared.close()
        self._ops.close()

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
        return self.prepared.decode_step(rows, shares=bool(tiles), penalizes=penalizes).launch(rows, tiles)

    def _launch_mixed(self, plan: StepPlan) -> Download | _NoTokens:
        rows, state = plan.rows, self._state
        upload = Upload(self._buffer)
        layout = lay_out(plan, self._page_size, state.block_tables(rows))
        step = self.prepared.chunk_step(layout)
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

    def _send_tables(self, rows: list[Row] | tuple[Row, ...], tables: torch.Tensor, upload: Upload) -> None:
        """Send what was put so far, and let the device's state have the rows' tables."""
        slots = upload.put(_column(row.slot for row in rows))
        upload.send()
        self._state.write_tables(rows, slots, tables)

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
