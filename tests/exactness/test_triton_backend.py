"""The Triton backend, whole: its kernels together give the tokens of the torch backend."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.core_submit import submit
from support.tiny_models import VOCAB, engine, write_model

PENALTIES = {"frequency_penalty": 0.8, "presence_penalty": -0.2, "repetition_penalty": 1.4}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "most_captured_tokens"),
    [("qwen3", 4096), ("mistral-window", 0)],
    ids=["Qwen3, padded steps", "Mistral, steps as they are"],
)
def test_triton_engine_gives_the_tokens_of_the_torch_engine(
    name: str, most_captured_tokens: int, tmp_path: Path
) -> None:
    """Prefill in chunks mixed with decodes, a fork's copied page, greedy and seeded, penalties: a few tokens of tiny models."""
    write_model(tmp_path, name)
    rng = random.Random(9)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (5, 33)]
    requests = [
        submit(0, prompts[0], 4),
        submit(1, prompts[1], 3, temperature=0.8, top_k=20, top_p=0.9, seed=4, n=2, **PENALTIES),
    ]
    settings = {"max_step_tokens": 35, "num_pages": 16, "max_model_len": 64, "max_sequences": 4}
    expected = engine(tmp_path, backend="torch", **settings).generate(requests)
    octavo = engine(tmp_path, backend="triton", device="auto", **settings)
    runner: Any = octavo._runner
    runner.prepared.most_captured_tokens = most_captured_tokens
    outputs = octavo.generate(requests)
    assert {at: output.token_ids for at, output in outputs.items()} == {
        at: output.token_ids for at, output in expected.items()
    }
    for at, output in outputs.items():
        assert output.logprobs == pytest.approx(expected[at].logprobs, abs=1e-4)


@pytest.mark.timeout(240)
def test_a_rehearsal_writes_no_page(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    octavo = engine(
        tmp_path, backend="triton", device="auto", max_step_tokens=20, max_sequences=2, num_pages=16, max_model_len=32
    )
    octavo.generate([submit(0, [5, 6, 7, 8] * 5, 2)])
    runner: Any = octavo._runner
    pool = runner._ops._pool
    before = pool.clone()
    assert before.count_nonzero() > 0
    with torch.inference_mode(), runner._on_stream():
        runner.prepared.rehearse_lone()
        runner.prepared.rehearse_others()
    assert torch.equal(pool, before)
