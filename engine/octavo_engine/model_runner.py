"""Runs plans on a decoder on the CPU, one step at a time: plan in, sampled tokens out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Batch, block_tables_of, build_batch
from octavo_engine.models.decoder import Decoder
from octavo_engine.penalties import count_anew
from octavo_engine.sequence import Sampled, StepPlan
from octavo_engine.warm_up import warm_up_plans


@dataclass(frozen=True, slots=True)
class _Done:
    sampled: Sampled

    def result(self) -> Sampled:
        """Return the tokens, which are there already."""
        return self.sampled


class ModelRunner:
    """A runner that computes each step at once (`depth` 1)."""

    depth = 1
    is_warm = True

    def __init__(self, decoder: Decoder, ops: Ops, *, page_size: int) -> None:
        self._decoder = decoder
        self._ops = ops
        self._page_size = page_size

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> _Done:
        """Compute a step."""
        if plan.copies:
            self._ops.copy_pages(plan.copies)
        batch = build_batch(plan, self._page_size, block_tables_of(plan))
        logits = self._decoder.forward(batch)
        if logits is None:
            return _Done(Sampled(token_ids=[], logprobs=[]))
        _ban(logits, batch)
        penalties = count_anew(plan.rows, self._decoder.config.vocab_size)
        ids, logprobs = self._ops.sample(logits, replace(batch, penalties=penalties) if penalties else batch)
        return _Done(Sampled(token_ids=ids.tolist(), logprobs=logprobs.tolist()))

    def warm_up(self) -> None:
        """Compile every kernel by a chunk and a decode, greedy and drawn, so that no request waits for it.

        Writes to page 0, which nobody holds yet.
        """
        for plan in warm_up_plans():
            self.launch(plan).result()

    def warm_next(self) -> None:
        """Do nothing: a step of one size is like any other."""

    def close(self) -> None:
        """Give threads back."""
        self._ops.close()


def _ban(logits: torch.Tensor, batch: Batch) -> None:
    # The log-probabilities of a row with banned ids are those of the model without these ids.
    for row, token_ids in batch.banned:
        logits[row, list(token_ids)] = -torch.inf
