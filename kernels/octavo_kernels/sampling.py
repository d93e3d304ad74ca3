"""Choose the next token of each row: greedy, or a seeded draw from the truncated softmax, without sorting.

Three launches, whose grids depend on shapes only:

1. `_thresholds` finds the lowest value that survives top_k, top_p and min_p, by a bisection on the ordered bits of fp32;
   rows that truncate nothing return at once.
2. `_best_of_chunk` reads the logits once, a chunk of ids a program: log-sum-exp of the raw logits, and the best of
   logits / temperature + Gumbel noise (Gumbel-max; the noise is that of `philox`).
3. `_best_of_row` merges the chunks in order.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.launch import FLOATS, check_tensor, check_vector

# Ids a program of the second launch reads. A constant: a row's sums must not depend on the batch.
_CHUNK = 4096
_TILE = 2048
# The search passes over a whole row many times with one program: wide tiles keep enough loads in flight.
_SEARCH_TILE = 8192
_SEARCH_WARPS = 16


def sample_workspace_size(batch: int, vocab_size: int) -> int:
    """Return how many fp32 elements `sample` needs as its workspace."""
    return batch * (1 + 5 * -(-vocab_size // _CHUNK))


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
    workspace: torch.Tensor,
) -> None:
    """Choose one id a row; `reference.sample` states the rules of truncation and of ties, which are the same here.

    Args:
        logits: [B, V] fp32, fp16 or bf16; rows may be strided; -inf is allowed except for a whole row.
        temperature: [B] fp32; 0 means greedy, and then the other parameters do not matter.
        top_k: [B] int32; 0 means off.
        top_p: [B] fp32; 1 means off.
        min_p: [B] fp32, least probability relative to the highest; 0 means off.
        seed: [B] int64.
        position: [B] int64, absolute position of the token to be chosen.
        out_ids: [B] int64, written.
        out_logprobs: [B] fp32, written: log-softmax of the raw logits (no temperature, no truncation) at the id.
        workspace: fp32, at least `sample_workspace_size` elements; its contents do not matter.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits: {logits.ndim} axes, expected [B, V]")
    batch, vocab_size = logits.shape
    device = logits.device
    check_tensor("logits", logits, (batch, vocab_size), FLOATS, device)
    check_vector("temperature", temperature, batch, torch.float32, device)
    check_vector("top_k", top_k, batch, torch.int32, device)
    check_vector("top_p", top_p, batch, torch.float32, device)
    check_vector("min_p", min_p, batch, torch.float32, device)
    check_vector("seed", seed, batch, torch.int64, device)
    check_vector("position", position, batch, torch.int64, device)
    check_vector("out_ids", out_ids, batch, torch.int64, device)
    check_vector("out_logprobs", out_logprobs, batch, torch.float32, device)
    size = sample_workspace_size(batch, vocab_size)
    check_vector("workspace", workspace, workspace.numel(), torch.float32, device)
    if workspace.numel() < size:
        raise ValueError(f"workspace: {workspace.numel()} elements, expected at least {size}")
    if batch == 0:
        return
    num_chunks = triton.cdiv(vocab_size, _CHUNK)
    _thresholds[(batch,)](
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        workspace,
        vocab_size,
        logits.stride(0),
        TILE=_SEARCH_TILE,
        num_warps=_SEARCH_WARPS,
    )
    _best_of_chunk[num_chunks, batch](
        logits,
        temperature,
        seed,
        position,
        workspace,
        vocab_size,
        logits.stride(0),
        CHUNK=_CHUNK,
        TILE=_TILE,
        num_warps=4,
    )
    chunks_pad = triton.next_power_of_2(num_chunks)
    _best_of_row[(batch,)](workspace, out_ids, out_logprobs, num_chunks, CHUNKS_PAD=chunks_pad, num_warps=1)


@triton.jit
def _scaled_tile(row_ptr, ids, vocab_size, coldness):
    """Load logits * coldness as fp32; ids past the vocabulary read as -inf."""
    return tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32) * coldness


@triton.jit
def _ordered_bits(values):
    """Map fp32 to int32 so that the order of the integers is the order of the values; -0.0 counts as 0.0."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _highest_reaching(row_ptr, vocab_size, coldness, top, lowest, limit, BY_COUNT: tl.constexpr, TILE: tl.constexpr):
    """Return the highest value t such that the values in lowest .. t and above, counted or weighed, reach `limit`.

    The weight of a value is exp(value - top), or 1 with BY_COUNT. The answer is a value of the row: the sum over all
    values >= t changes nowhere else. Its 32 ordered bits are found two at a time, one pass over the row for each pair.
    """
    answer = tl.full([], -(2**31), tl.int64)
    for step in tl.range(0, 16):
        unit = tl.full([], 1, tl.int64) << (30 - 2 * step)
        mark1 = (answer + unit).to(tl.int32)
        mark2 = (answer + 2 * unit).to(tl.int32)
        mark3 = (answer + 3 * unit).to(tl.int32)
        sum1 = tl.zeros([TILE], tl.float32)
        sum2 = tl.zeros([TILE], tl.float32)
        sum3 = tl.zeros([TILE], tl.float32)
        for first in tl.range(0, vocab_size, TILE):
            ids = first + tl.arange(0, TILE)
            values = _scaled_tile(row_ptr, ids, vocab_size, coldness)
            kept = (ids < vocab_size) & (values >= lowest)
            weight = tl.where(kept, 1.0 if BY_COUNT else tl.exp(values - top), 0.0)
            bits = _ordered_bits(values)
            sum1 += tl.where(bits >= mark1, weight, 0.0)
            sum2 += tl.where(bits >= mark2, weight, 0.0)
            sum3 += tl.where(bits >= mark3, weight, 0.0)
        reached = (tl.sum(sum1) >= limit).to(tl.int64)
        reached += (tl.sum(sum2) >= limit).to(tl.int64)
        reached += (tl.sum(sum3) >= limit).to(tl.int64)
        answer += reached * unit
    bits = answer.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _thresholds(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    workspace_ptr,
    vocab_size,
    stride_row,
    TILE: tl.constexpr,
):
    """workspace[row] = lowest value of logits / temperature that survives top_k, then top_p, then min_p; -inf if all do.

    Grid (row). One program searches one row; the order of its sums depends on the vocabulary size alone.
    """
    row = tl.program_id(0)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    by_count = (top_k > 0) & (top_k < vocab_size)
    lowest = tl.full([], float("-inf"), tl.float32)
    if (temperature > 0) & (by_count | (top_p < 1.0) | (min_p > 0.0)):
        row_ptr = logits_ptr + row.to(tl.int64) * stride_row
        coldness = tl.div_rn(1.0, temperature)
        best = tl.full([TILE], float("-inf"), tl.float32)
        for first in tl.range(0, vocab_size, TILE):
            best = tl.maximum(best, _scaled_tile(row_ptr, first + tl.arange(0, TILE), vocab_size, coldness))
        top = tl.max(best)
        if by_count:
            lowest = _highest_reaching(row_ptr, vocab_size, coldness, top, lowest, top_k.to(tl.float32), True, TILE)
        if top_p < 1.0:
            mass = tl.zeros([TILE], tl.float32)
            for first in tl.range(0, vocab_size, TILE):
                ids = first + tl.arange(0, TILE)
                values = _scaled_tile(row_ptr, ids, vocab_size, coldness)
                mass += tl.where((ids < vocab_size) & (values >= lowest), tl.exp(values - top), 0.0)
            # The highest value has a weight of 1, so the smallest positive limit keeps it and its equals.
            limit = tl.maximum(top_p * tl.sum(mass), 1e-30)
            lowest = _highest_reaching(row_ptr, vocab_size, coldness, top, lowest, limit, False, TILE)
        if min_p > 0.0:
            lowest = tl.maximum(lowest, top + tl.log(min_p))
    tl.store(workspace_ptr + row, lowest)


@triton.jit
def _gumbel(seed, position, blocks, TILE: tl.constexpr):
    """Noise of the ids 4 * blocks .. 4 * blocks + 3, flattened to [TILE]; `philox.gumbel` is its specification."""
    zero = tl.zeros_like(blocks)
    word0, word1, word2, word3 = tl.philox(seed, blocks, zero + position.to(tl.uint32), zero, zero)
    # join() appends an axis: pairing 0 with 2 and 1 with 3 first makes the flat order 0, 1, 2, 3.
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [TILE])
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _best_of_chunk(
    logits_ptr,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    workspace_ptr,
    vocab_size,
    stride_row,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """(max, sum exp(logit - max)) of a chunk's raw logits, and (score, id, logit) of its best id.

    Grid (chunk, row). The score is logit / temperature + noise over the survivors, or the logit itself if greedy.
    Writes five fp32 words a chunk after the thresholds: workspace[B + 5 * (row * chunks + chunk)]; the id as its bits.
    """
    chunk, row = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    lowest = tl.load(workspace_ptr + row)
    row_ptr = logits_ptr + row.to(tl.int64) * stride_row
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    best_score = tl.full([], float("-inf"), tl.float32)
    best_id = chunk * CHUNK
    stop = tl.minimum(vocab_size, (chunk + 1) * CHUNK)
    for first in tl.range(chunk * CHUNK, stop, TILE):
        ids = first + tl.arange(0, TILE)
        raw = tl.load(row_ptr + ids, mask=ids < stop, other=float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(raw, axis=0))
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - safe_top) + tl.sum(tl.exp(raw - safe_top), axis=0)
        top = new_top
        scores = raw
        if temperature > 0:
            # Rounded like PyTorch's: the fast division differs in the last bit, and ties must be the same ties.
            values = raw * tl.div_rn(1.0, temperature)
            blocks = (first // 4 + tl.arange(0, TILE // 4)).to(tl.uint32)
            noise = _gumbel(tl.load(seed_ptr + row), tl.load(position_ptr + row), blocks, TILE)
            scores = tl.where(values >= lowest, values + noise, float("-inf"))
        score, place = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
        if score > best_score:  # not >=: the lowest id wins a tie
            best_score = score
            best_id = first + place
    partial = workspace_ptr + tl.num_programs(1) + 5 * (row * tl.num_programs(0) + chunk)
    tl.store(partial, top)
    tl.store(partial + 1, total)
    tl.store(partial + 2, best_score)
    tl.store(partial + 3, best_id.to(tl.float32, bitcast=True))
    tl.store(partial + 4, tl.load(row_ptr + best_id).to(tl.float32))


@triton.jit(do_not_specialize=["num_chunks"])
def _best_of_row(workspace_ptr, out_ids_ptr, out_logprobs_ptr, num_chunks, CHUNKS_PAD: tl.constexpr):
    """Merge a row's chunks: id of the best score (lowest chunk wins a tie), logprob = its logit - log-sum-exp.

    Grid (row).
    """
    row = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS_PAD)
    inside = chunks < num_chunks
    partial = workspace_ptr + tl.num_programs(0) + 5 * (row * num_chunks + chunks)
    tops = tl.load(partial, mask=inside, other=float("-inf"))
    totals = tl.load(partial + 1, mask=inside, other=0.0)
    scores = tl.load(partial + 2, mask=inside, other=float("-inf"))
    top = tl.max(tops, axis=0)
    lse = top + tl.log(tl.sum(totals * tl.exp(tops - top), axis=0))
    _, winner = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
    chosen = workspace_ptr + tl.num_programs(0) + 5 * (row * num_chunks + winner)
    best_id = tl.load(chosen + 3).to(tl.int32, bitcast=True)
    tl.store(out_ids_ptr + row, best_id.to(tl.int64))
    tl.store(out_logprobs_ptr + row, tl.load(chosen + 4) - lse)
