"""Runs plans on a decoder, one step at a time: plan in, sampled tokens out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo_engine.backends.ops import Ops
from octavo_engine.batch import Batch, build_batch
from octavo_engine.models.decoder import Decoder
from octavo_engine.sequence import Request, Row, Sampled, Sampling, Sequence, StepPlan


@dataclass(frozen=True, slots=True)
class _Done:
    sampled: Sampled

    def result(self) -> Sampled:
        """Return the tokens, which are there already."""
        return self.sampled


class ModelRunner:
    """A runner that computes each step at once (`depth` 1)."""

    depth = 1

    def __init__(self, decoder: Decoder, ops: Ops, *, page_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._ops = ops
        self._page_size = page_size
        self._device = device

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> _Done:
        """Compute a step."""
        if plan.copies:
            self._ops.copy_pages(plan.copies)
        batch = build_batch(plan, self._page_size, self._device)
        logits = self._decoder.forward(batch)
        if logits is None:
            return _Done(Sampled(token_ids=[], logprobs=[]))
        _ban(logits, batch)
        ids, logprobs = self._ops.sample(logits, batch)
        return _Done(Sampled(token_ids=ids.tolist(), logprobs=logprobs.tolist()))

    def warm_up(self) -> None:
        """Compile every kernel by a chunk and a decode, greedy and drawn, so that no request waits for it.

        Writes to page 0, which nobody holds yet.
        """
        samplings = (Sampling(temperature=0.0), Sampling(temperature=1.0, top_k=2, top_p=0.9, min_p=0.1))
        for start, num_tokens in ((0, 2), (2, 1)):
            rows = tuple(_warm_up_row(sampling, start, num_tokens) for sampling in samplings)
            self.launch(StepPlan(step_id=0, rows=rows, copies=((0, 1),))).result()

    def close(self) -> None:
        """Give threads back."""
        self._ops.close()


def _warm_up_row(sampling: Sampling, start: int, num_tokens: int) -> Row:
    request = Request(key=0, prompt=[0] * (start + num_tokens), sampling=sampling)
    return Row(
        sequence=Sequence(request=request, tokens=list(request.prompt)),
        start=start,
        num_tokens=num_tokens,
        samples=True,
        output_position=0,
        block_table=(0,),
        slot=0,
        generation=0,
    )


def _ban(logits: torch.Tensor, batch: Batch) -> None:
    # The log-probabilities of a row with banned ids are those of the model without these ids.
    for row, token_ids in batch.banned:
        logits[row, list(token_ids)] = -torch.inf
