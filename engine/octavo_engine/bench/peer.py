"""The peer on a CPU: transformers' `generate` on dense batches of the same prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from octavo.workloads import Job

from octavo_engine.bench.measured import Measured


class TransformersPeer:
    """A model as transformers runs it, with its default (SDPA) attention."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        model: Any = transformers.AutoModelForCausalLM
        self._model: Any = model.from_pretrained(directory, dtype=dtype)
        self._model.eval()

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], concurrency: int) -> Measured:
        """Generate greedily, batch by batch. Jobs must be of one shape, so that no padding distorts the figure."""
        started = time.perf_counter()
        tokens = 0
        for first in range(0, len(jobs), concurrency):
            batch = jobs[first : first + concurrency]
            prompts = torch.tensor([job.prompt for job in batch])
            output = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=batch[0].max_tokens,
                min_new_tokens=batch[0].max_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
            tokens += output[:, prompts.shape[1] :].numel()
        return Measured(tokens, time.perf_counter() - started)
