"""An engine whose model costs nothing: its next token depends on the last one alone."""

from __future__ import annotations

from typing import Any

import torch
from octavo_engine.backends.cpu_linear import CpuLinear
from octavo_engine.backends.cpu_ops import CpuOps
from octavo_engine.backends.row_threads import RowThreads
from octavo_engine.batch import Batch, Inputs
from octavo_engine.config import EngineConfig
from octavo_engine.model_runner import ModelRunner
from octavo_engine.models.config import ModelConfig, Rope
from octavo_engine.offline import OfflineEngine
from octavo_engine.pipelined_runner import PipelinedRunner
from octavo_engine.runner import Loaded, ModelFacts, Runner

VOCAB = 12
MODEL = ModelConfig(
    family="llama", vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1, num_kv_heads=1,
    head_dim=16, rms_norm_eps=1e-6, rope=Rope(), max_position=64, tie_embeddings=True, qk_norm=False, windows=(8,),
    eos_token_ids=(), dtype="float32",
)  # fmt: skip
PAGE_SIZE = 4


class Bigrams:
    """A decoder whose logits depend on the last token alone, so that without penalties it soon goes round in circles."""

    config = MODEL

    def __init__(self) -> None:
        self._logits = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(6)) * 2

    def sketch(self) -> Bigrams:
        return self

    def forward(self, batch: Batch) -> torch.Tensor | None:
        if len(batch.sample_tokens) == 0:
            return None
        return self._logits[batch.token_ids[batch.sample_tokens]]

    def body(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs.token_ids, inputs.token_ids

    def finish(self, _rows: Inputs, q: torch.Tensor, _residual: torch.Tensor) -> torch.Tensor:
        return self._logits[q]


def offline(
    *, ahead: bool, num_pages: int = 64, max_sequences: int = 4, max_len: int = 64, max_step_tokens: int = 48
) -> OfflineEngine:
    """Return an engine over bigrams, with a runner that works one step ahead, as on a GPU, or one that does not."""
    pool = torch.zeros(num_pages, 1, 2, 1, PAGE_SIZE, 16)
    decoder: Any = Bigrams()
    threads = RowThreads(1)
    linear = CpuLinear(pool.dtype, exact=False, tiles=False, threads=threads)
    ops = CpuOps(MODEL, pool, max_len=max_len, threads=threads, linear=linear)
    runner: Runner = ModelRunner(decoder, ops, page_size=PAGE_SIZE)
    if ahead:
        runner = PipelinedRunner(
            decoder, ops, page_size=PAGE_SIZE, max_sequences=max_sequences, max_len=max_len, max_step_tokens=max_step_tokens, device=pool.device
        )  # fmt: skip
    facts = ModelFacts(
        name="bigrams", revision="", tokenizer_revision="", max_model_len=max_len, vocab_size=VOCAB, eos_token_ids=(),
        page_size=PAGE_SIZE, num_pages=num_pages, backend="triton", device="cpu", dtype="float32", numerics="exact",
    )  # fmt: skip
    config = EngineConfig(max_sequences=max_sequences, max_step_tokens=max_step_tokens, watermark=0.0, itl_target_ms=0)
    return OfflineEngine(config, Loaded(runner=runner, facts=facts))
