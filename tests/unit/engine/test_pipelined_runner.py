"""What the runner that works one step ahead makes of odd limits, and of a device without room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from octavo_engine.chunk_step import ChunkStep
from support.bigram_engine import VOCAB, offline
from support.core_submit import submit

BANS = list(range(3, VOCAB))


@pytest.mark.parametrize(
    ("max_step_tokens", "max_sequences", "max_len"),
    [(2, 1, 16), (3, 2, 33), (34, 2, 64), (40, 8, 17), (65, 33, 64), (200, 70, 33), (300, 100, 64)],
)
def test_every_steps_columns_fit(max_step_tokens: int, max_sequences: int, max_len: int) -> None:
    """Full steps of decodes and chunks, each with banned ids, beside the padding of the next larger size."""
    octavo = offline(
        ahead=True, num_pages=2000, max_sequences=max_sequences, max_len=max_len, max_step_tokens=max_step_tokens
    )
    requests = [
        submit(key, [1 + key % 2] * (1 + 7 * key % (max_len - 4)), 4, stop_token_ids=BANS, min_tokens=3)
        for key in range(2 * max_sequences + 3)
    ]
    outputs = octavo.generate(requests)
    assert {output.end.error for output in outputs.values() if output.end is not None} == {""}
    assert all(3 <= len(output.token_ids) <= 4 for output in outputs.values())


def test_a_step_that_finds_no_memory_for_its_graph_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    octavo = offline(ahead=True)
    runner: Any = octavo._runner
    runner.prepared._pool = "a pool"
    tried: list[ChunkStep] = []

    def capture(step: Any, _pool: object) -> None:
        step.is_tried = True
        tried.append(step)
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(ChunkStep, "capture", capture)
    monkeypatch.setattr("octavo_engine.decode_step.DecodeStep.capture", lambda _step, _pool: None)
    for key in range(4):
        outputs = octavo.generate([submit(key, [1, 2, 3 + key], 3)])
        assert len(outputs[key, 0].token_ids) == 3
    assert len(tried) == 1, "tried when it came again, and never after"
