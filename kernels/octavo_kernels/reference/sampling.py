"""Sampling: the rules of truncation and of ties, and the draw."""

import math

import torch

from octavo_kernels import philox

_SUM_BLOCK = 1024


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    out_ids: torch.Tensor,
    out_logprobs: torch.Tensor,
    workspace: torch.Tensor | None = None,
) -> None:
    """Choose one id a row: the highest logit, or a draw from the truncated softmax.

    The draw is Gumbel-max: argmax of logits / temperature + noise, with the noise of `philox`, over the ids that
    survive temperature -> top_k -> top_p -> min_p. Ties:

    - argmax: the lowest id wins;
    - top_k keeps every id whose value is at least the k-th highest;
    - top_p keeps an id if the probability of all *strictly* higher values is below top_p, so ids of equal value stay
      or go together and the highest value always stays.

    Rows are computed one by one, so a row's result is bitwise independent of its neighbours.

    Args:
        logits: [B, V] fp32, fp16 or bf16; -inf is allowed except for a whole row. A row with NaN gets any of its ids.
        temperature: [B] fp32; 0 means greedy, and then the other parameters do not matter.
        top_k: [B] int32; 0 means off.
        top_p: [B] fp32; 1 means off.
        min_p: [B] fp32, least probability relative to the highest; 0 means off.
        seed: [B] int64.
        position: [B] int64, absolute position of the token to be chosen.
        out_ids: [B] int64, written.
        out_logprobs: [B] fp32, written: log-softmax of the raw logits (no temperature, no truncation) at the id.
        workspace: ignored here.
    """
    del workspace
    coldness = torch.where(temperature > 0, 1.0 / temperature, 0.0)  # kernels multiply too: the same last bit
    rows = zip(*(x.tolist() for x in (coldness, top_k, top_p, min_p, seed, position)), strict=True)
    for row, (factor, k, p, floor, row_seed, row_position) in enumerate(rows):
        raw = logits[row].to(torch.float32)
        chosen = raw.argmax() if factor == 0 else _draw(raw * factor, k, p, floor, row_seed, row_position)
        out_ids[row] = chosen
        top = raw.max()
        out_logprobs[row] = raw[chosen] - top - _sum((raw - top).exp()).log()


def _draw(values: torch.Tensor, k: int, p: float, floor: float, seed: int, position: int) -> torch.Tensor:
    """Return the id of the highest value + noise among the values [V] that survive truncation."""
    best = values.max()
    if best.isnan():  # one of the values is: none is known to survive
        return values.argmax()
    # An id further below the best one than the range of the noise can never win, truncated or not.
    least = best - (philox.MAX_GUMBEL - philox.MIN_GUMBEL)
    ids = torch.nonzero(values >= torch.maximum(least, sampling_threshold(values, k, p, floor)))[:, 0]
    if len(ids) * 4 < len(values):
        noise = philox.gumbel_at(seed, position, ids)
    else:
        noise = philox.gumbel(seed, position, len(values), values.device)[ids]
    return ids[(values[ids] + noise).argmax()]


def sampling_threshold(values: torch.Tensor, k: int, p: float, floor: float) -> torch.Tensor:
    """Return the lowest value that survives top_k, then top_p, then min_p.

    Args:
        values: [V] fp32, logits / temperature.
        k: keep values from the k-th highest up; 0 means off.
        p: keep values whose strictly higher values hold less than this probability; 1 means off.
        floor: keep values of at least this probability relative to the highest; 0 means off.

    Returns:
        A scalar fp32 tensor, -inf if all survive.
    """
    lowest = values.new_tensor(-torch.inf)
    if 0 < k < len(values):
        lowest = values.topk(k).values[-1]
    if p < 1:
        lowest = torch.maximum(lowest, _top_p_threshold(values[values >= lowest], p))
    if floor > 0:
        lowest = torch.maximum(lowest, values.max() + math.log(floor))
    return lowest


def _top_p_threshold(values: torch.Tensor, p: float) -> torch.Tensor:
    """Return the highest value at which the probability of it and all higher ones reaches p."""
    total = _sum((values - values.max()).exp().double())
    # The nucleus is nearly always small: look at the highest values before sorting them all.
    for size in (min(1024, len(values)), len(values)):
        ordered = values.topk(size).values
        reached = (ordered - ordered[0]).exp().cumsum(0, dtype=torch.float64) >= p * total
        if reached[-1] or size == len(values):
            break
    reached[-1] = True  # rounding may leave the last sum just below p
    return ordered[reached.int().argmax()]


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a vector in an order that depends on its length alone.

    torch splits the sum of one long vector between its threads; sums of many short rows it gives to threads whole.
    """
    padded = torch.nn.functional.pad(values, (0, -len(values) % _SUM_BLOCK))
    return padded.view(-1, _SUM_BLOCK).sum(dim=1).sum()
