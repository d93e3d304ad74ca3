"""Penalties: make what a sequence already holds less (or more) likely to come again.

For a token with raw logit l that stands c times in the output so far, with penalties off where nothing is said:

    l' = l / repetition if l > 0 else l * repetition        if it stands in the prompt or the output
    l" = l' - frequency * c - presence * [c > 0]

(repetition: Keskar et al. 2019, arXiv 1909.05858, with the sign handled as transformers does; the others: OpenAI's API).

A slot's tally says what its sequence holds, a word for each id of the vocabulary: 2 * (times in the output) + (1 if in the
prompt). Nothing here reads a row's tally if it has no penalties.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import FLOATS, check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv
from octavo_kernels.launch import launch
from octavo_kernels.overlap import early_launch, wait_for_previous

_CHUNK = 2048
# A product and a difference must be rounded apart, as they are elsewhere, for ties to be the same ties.
_ROUNDING = {"enable_fp_fusion": False}


def penalize(
    logits: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the logits with each row's penalties; a row without any is only widened.

    Args:
        logits: [B, V] fp32, fp16 or bf16; rows may be strided; -inf stays -inf.
        tallies: [S, V] int32, tallies by slot.
        slots: [B] int64.
        frequency: [B] fp32; 0 means off.
        presence: [B] fp32; 0 means off.
        repetition: [B] fp32, above 0; 1 means off.
        out: [B, V] fp32, written.
    """
    batch, vocab_size = _check(logits, tallies, slots, frequency, presence, repetition)
    check_tensor("out", out, (batch, vocab_size), torch.float32, logits.device)
    if batch == 0:
        return
    launch(
        _penalize_chunk,
        (cdiv(vocab_size, _CHUNK), batch),
        logits,
        tallies,
        slots,
        frequency,
        presence,
        repetition,
        out,
        vocab_size,
        logits.stride(0),
        tallies.stride(0),
        out.stride(0),
        CHUNK=_CHUNK,
        num_warps=4,
        **early_launch(),
        **_ROUNDING,
    )


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
        frequency: [B] fp32, as in `penalize`.
        presence: [B] fp32, as in `penalize`.
        repetition: [B] fp32, as in `penalize`.
        ids: [B] int64, drawn without penalties; rows with penalties get theirs.
        logprobs: [B] fp32, log-softmax of `logits` at `ids`, before and after.
    """
    batch, _ = _check(logits, tallies, slots, frequency, presence, repetition)
    check_vector("penalized_ids", penalized_ids, batch, torch.int64, logits.device)
    check_vector("ids", ids, batch, torch.int64, logits.device)
    check_vector("logprobs", logprobs, batch, torch.float32, logits.device)
    if batch == 0:
        return
    launch(
        _take_row,
        (batch,),
        logits,
        penalized_ids,
        tallies,
        slots,
        frequency,
        presence,
        repetition,
        ids,
        logprobs,
        logits.stride(0),
        tallies.stride(0),
        num_warps=1,
        **early_launch(),
    )


def _check(
    logits: torch.Tensor,
    tallies: torch.Tensor,
    slots: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
) -> tuple[int, int]:
    if logits.ndim != 2:
        raise ValueError(f"logits: {logits.ndim} axes, expected [B, V]")
    batch, vocab_size = logits.shape
    device = logits.device
    check_tensor("logits", logits, (batch, vocab_size), FLOATS, device)
    check_tensor("tallies", tallies, (tallies.shape[0], vocab_size), torch.int32, device)
    check_vector("slots", slots, batch, torch.int64, device)
    check_vector("frequency", frequency, batch, torch.float32, device)
    check_vector("presence", presence, batch, torch.float32, device)
    check_vector("repetition", repetition, batch, torch.float32, device)
    return batch, vocab_size


@triton.jit
def _has_penalties(frequency, presence, repetition):
    return (frequency != 0.0) | (presence != 0.0) | (repetition != 1.0)


@triton.jit
def _penalize_chunk(
    logits_ptr,
    tallies_ptr,
    slots_ptr,
    frequency_ptr,
    presence_ptr,
    repetition_ptr,
    out_ptr,
    vocab_size,
    stride_row,
    stride_tally,
    stride_out,
    CHUNK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid (chunk of ids, row)."""
    chunk, row = tl.program_id(0), tl.program_id(1)
    wait_for_previous(EARLY)
    frequency, presence = tl.load(frequency_ptr + row), tl.load(presence_ptr + row)
    repetition = tl.load(repetition_ptr + row)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = ids < vocab_size
    values = tl.load(logits_ptr + row.to(tl.int64) * stride_row + ids, mask=inside, other=0.0).to(tl.float32)
    if _has_penalties(frequency, presence, repetition):
        words = tl.load(tallies_ptr + tl.load(slots_ptr + row) * stride_tally + ids, mask=inside, other=0)
        count = (words >> 1).to(tl.float32)
        repeated = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
        values = tl.where(words > 0, repeated, values)
        values = values - frequency * count
        values = values - tl.where(count > 0, presence, 0.0)
    tl.store(out_ptr + row.to(tl.int64) * stride_out + ids, values, mask=inside)


@triton.jit
def _take_row(
    logits_ptr,
    penalized_ids_ptr,
    tallies_ptr,
    slots_ptr,
    frequency_ptr,
    presence_ptr,
    repetition_ptr,
    ids_ptr,
    logprobs_ptr,
    stride_row,
    stride_tally,
    EARLY: tl.constexpr,
):
    """Grid (row). Log-probabilities of one row differ as its logits do: no second log-sum-exp is needed."""
    row = tl.program_id(0)
    wait_for_previous(EARLY)
    frequency, presence = tl.load(frequency_ptr + row), tl.load(presence_ptr + row)
    if _has_penalties(frequency, presence, tl.load(repetition_ptr + row)):
        plain, taken = tl.load(ids_ptr + row), tl.load(penalized_ids_ptr + row)
        row_ptr = logits_ptr + row.to(tl.int64) * stride_row
        difference = tl.load(row_ptr + taken).to(tl.float32) - tl.load(row_ptr + plain).to(tl.float32)
        tl.store(logprobs_ptr + row, tl.load(logprobs_ptr + row) + difference)
        tl.store(ids_ptr + row, taken)
        word_ptr = tallies_ptr + tl.load(slots_ptr + row) * stride_tally + taken
        tl.store(word_ptr, tl.load(word_ptr) + 2)
