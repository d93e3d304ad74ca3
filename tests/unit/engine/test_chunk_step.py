"""Steps with prefill chunks in padded columns: which size one runs in, and what the padding says."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from octavo.random_model import SHAPES
from octavo_engine.batch import Inputs, Layout, lay_out
from octavo_engine.chunk_step import MAX_CHUNKS, ChunkStep, chunk_shape, most_captured_tokens, usual_chunk_shapes
from octavo_engine.models.config import parse_config
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Request, Row, Sampling, Sequence, StepPlan
from octavo_engine.slot_state import SlotState
from octavo_engine.transfer import Upload

PAGE_SIZE = 16
WIDTH = 256


def rows_of(num_decodes: int, *chunks: int) -> list[Row]:
    """Return the rows of a step of decodes behind 40 tokens, and of first chunks of so many tokens."""
    parts = [(40, 1)] * num_decodes + [(0, size) for size in chunks]
    return [
        Row(
            sequence=Sequence(request=Request(key=slot, prompt=[7], sampling=Sampling()), tokens=[7] * (start + size)),
            start=start, num_tokens=size, samples=True, output_position=0, block_table=(0,), slot=slot, generation=0,
        )
        for slot, (start, size) in enumerate(parts)
    ]  # fmt: skip


def layout_of(num_decodes: int, *chunks: int) -> Layout:
    rows = rows_of(num_decodes, *chunks)
    return lay_out(StepPlan(step_id=1, rows=tuple(rows)), PAGE_SIZE, np.zeros((len(rows), WIDTH), dtype=np.int32))


@pytest.mark.parametrize(
    ("num_decodes", "chunks", "tokens", "decodes"),
    [
        (0, (2,), 32, 0),
        (0, (129,), 256, 0),
        (3, (60,), 64, 16),
        (17, (1007,), 1024, 64),
        (100, (300, 100, 29), 640, 128),
        (300, (20,), 512, 512),  # tokens for every decode that the step is padded to
    ],
)
def test_the_smallest_shape_that_holds_a_step(
    num_decodes: int, chunks: tuple[int, ...], tokens: int, decodes: int
) -> None:
    shape = chunk_shape(layout_of(num_decodes, *chunks), WIDTH, 4096, 1024)
    assert shape is not None
    assert (shape.tokens, shape.decodes, shape.width) == (tokens, decodes, WIDTH)


@pytest.mark.parametrize(
    ("num_decodes", "chunks"), [(5, ()), (0, (2,) * (MAX_CHUNKS + 1)), (0, (1025,)), (9, (1016, 3))]
)
def test_steps_without_chunks_or_with_too_much_have_none(num_decodes: int, chunks: tuple[int, ...]) -> None:
    assert chunk_shape(layout_of(num_decodes, *chunks), WIDTH, 1024, 48) is None


def test_usual_shapes_are_those_that_steps_ask_for() -> None:
    shapes = usual_chunk_shapes(WIDTH, 1024, 48, 8192)
    asked = {
        chunk_shape(layout_of(decodes, tokens - decodes), WIDTH, 1024, 48)
        for decodes in (0, 1, 16, 17, 48)
        for tokens in range(66, 1025, 2)
    }
    assert asked <= set(shapes)
    assert shapes[-1].tokens == 1024, "the largest one is prepared first"
    assert usual_chunk_shapes(WIDTH, 1024, 48, 300)[-1].tokens == 384


class Recorder:
    """A decoder that keeps what it was given."""

    def __init__(self) -> None:
        self.inputs: list[list[list[int]]] = []

    def sketch(self) -> Recorder:
        return self

    def body(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        assert inputs.chunks is not None
        columns = (
            inputs.token_ids, inputs.positions, inputs.slots, inputs.context_lens, inputs.chunks.context_lens,
            inputs.chunks.query_start,
        )  # fmt: skip
        self.inputs.append([column.tolist() for column in columns])
        return inputs.token_ids[:, None], inputs.positions[:, None]


def a_step(decoder: Recorder, layout: Layout, buffer: torch.Tensor) -> ChunkStep:
    shape = chunk_shape(layout, WIDTH, 4096, 64)
    assert shape is not None
    state = SlotState(num_slots=64, max_pages=WIDTH, page_size=PAGE_SIZE, vocab_size=9, device=buffer.device)
    return ChunkStep(cast("Decoder", decoder), state, shape, buffer)


def test_a_step_is_padded_with_rows_that_change_nothing() -> None:
    decoder, layout, buffer = Recorder(), layout_of(3, 20, 30), torch.zeros(1 << 16, dtype=torch.uint8)
    step = a_step(decoder, layout, buffer)
    upload = Upload(buffer)
    step.put(layout, rows_of(3, 20, 30), upload)
    upload.send()
    q, positions = step.run()
    token_ids, _, slots, decode_lens, chunk_lens, starts = decoder.inputs[0]
    assert token_ids == [7] * 53 + [0] * 11
    assert slots[53:] == [-1] * 11
    assert decode_lens == [41] * 3 + [-1] * 13
    assert chunk_lens == [20, 30] + [0] * (MAX_CHUNKS - 1)
    assert starts == [3, 23, 53] + [64] * (MAX_CHUNKS - 1)
    assert q[:5].flatten().tolist() == [7] * 5
    assert positions[:5].flatten().tolist() == [40, 40, 40, 19, 29]


def test_a_rehearsal_knows_nothing_of_the_step_before() -> None:
    """The buffer holds the columns of whatever step was uploaded last, of any size."""
    decoder, layout, buffer = Recorder(), layout_of(3, 20, 30), torch.zeros(1 << 16, dtype=torch.uint8)
    step = a_step(decoder, layout, buffer)
    buffer.fill_(77)
    step.rehearse()
    token_ids, positions, slots, decode_lens, chunk_lens, starts = decoder.inputs[0]
    assert set(token_ids) == set(positions) == {0}
    assert set(starts) == {0, 64}
    assert set(slots) == set(decode_lens) == {-1}
    assert set(chunk_lens) == {0}


def test_large_models_hide_the_launches_of_fewer_tokens() -> None:
    large, small = (most_captured_tokens(parse_config(SHAPES[name])) for name in ("llama-8b", "qwen3-0.6b"))
    assert 1024 < large < 4096 < small
