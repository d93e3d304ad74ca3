"""Penalties: what a sequence already holds becomes less (or more) likely to come again."""

import torch


def penalize(
    logits: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the logits with each row's penalties: repetition, then frequency, then presence.

    Args:
        logits: [B, V] fp32, fp16 or bf16; -inf stays -inf.
        tallies: [S, V] int32, by slot: 2 * (times in the output) + (1 if in the prompt).
        slots: [B] int64.
        frequency: [B] fp32; 0 means off.
        presence: [B] fp32; 0 means off.
        repetition: [B] fp32, above 0; 1 means off.
        out: [B, V] fp32, written.
    """
    values, words = logits.to(torch.float32), tallies[slots]
    counts = (words >> 1).to(torch.float32)
    frequency, presence, repetition = frequency[:, None], presence[:, None], repetition[:, None]
    repeated = torch.where(values > 0, values / repetition, values * repetition)
    values = torch.where(words > 0, repeated, values)
    values = values - frequency * counts
    out.copy_(values - torch.where(counts > 0, presence, 0.0))


def take_penalized(
    logits: torch.Tensor,
    penalized_ids: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
) -> None:
    """Let rows with penalties have the ids drawn from penalized logits, and count these ids as output.

    Args:
        logits: [B, V] fp32, fp16 or bf16, without penalties.
        penalized_ids: [B] int64, drawn with penalties.
        tallies: [S, V] int32; a row's id is added to its slot's.
        slots: [B] int64; rows with penalties have slots of their own.
        frequency: [B] fp32; 0 means off.
        presence: [B] fp32; 0 means off.
        repetition: [B] fp32; 1 means off.
        ids: [B] int64, drawn without penalties; rows with penalties get theirs.
        logprobs: [B] fp32, log-softmax of `logits` at `ids`, before and after.
    """
    rows = torch.nonzero((frequency != 0) | (presence != 0) | (repetition != 1))[:, 0]
    plain, taken = ids[rows], penalized_ids[rows]
    logprobs[rows] += logits[rows, taken].to(torch.float32) - logits[rows, plain].to(torch.float32)
    ids[rows] = taken
    tallies[slots[rows], taken] += 2
