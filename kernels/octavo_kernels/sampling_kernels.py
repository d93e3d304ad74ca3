"""Device code of sampling: `_summarize_chunk` and `_finish_row`, launched by `sampling`, which says how they share the work."""

import triton
import triton.language as tl

from octavo_kernels.gumbel import draw, gumbel_at
from octavo_kernels.overlap import wait_for_previous
from octavo_kernels.truncation import (
    collect,
    heaviest_bracket,
    highest_reaching,
    highest_reaching_in_row,
    ordered_bits,
    row_sums,
    value_of,
)


@triton.jit
def _truncates(temperature, top_k, top_p, min_p, vocab_size):
    return (temperature > 0) & (((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0) | (min_p > 0.0))


@triton.jit
def _summarize_chunk(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    workspace_ptr,
    vocab_size,
    stride_row,
    stride_record,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    HEADER: tl.constexpr,
    FIELDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """(max, sum exp(logit - max)) of a chunk's raw logits, and (score, id) of its best id.

    Grid (chunk, row). The score is logit / temperature + noise, or the logit itself if greedy. A row that truncates gets
    (max, sum, weight) and the highest value of each group instead: values are logits / temperature, and the weight is
    sum exp(value - highest value).
    """
    chunk, row = tl.program_id(0), tl.program_id(1)
    wait_for_previous(EARLY)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    record = workspace_ptr + row.to(tl.int64) * stride_record
    fields = record + HEADER + FIELDS * chunk
    first = chunk * CHUNK
    ids = first + tl.arange(0, CHUNK)
    row_ptr = logits_ptr + row.to(tl.int64) * stride_row
    raw = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    top, top_place = tl.max(raw, axis=0, return_indices=True, return_indices_tie_break_left=True)
    safe_top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(fields, top)
    tl.store(fields + 1, tl.sum(tl.exp(raw - safe_top), axis=0))
    if temperature > 0:
        # Rounded like PyTorch's: the fast division differs in the last bit, and ties must be the same ties.
        coldness = tl.div_rn(1.0, temperature)
        values = raw * coldness
        safe_top *= coldness
        if _truncates(temperature, top_k, top_p, min_p, vocab_size):
            highest = tl.max(tl.reshape(values, [CHUNK // GROUP, GROUP]), axis=1)
            groups = record + HEADER + FIELDS * tl.num_programs(0)
            tl.store(groups + first // GROUP + tl.arange(0, CHUNK // GROUP), highest)
            tl.store(fields + 2, tl.sum(tl.exp(values - safe_top), axis=0))
        else:
            score, place = draw(values, safe_top, tl.load(seed_ptr + row), tl.load(position_ptr + row), first, CHUNK)
            tl.store(fields + 2, score)
            tl.store(fields + 3, (first + place).to(tl.float32, bitcast=True))
    else:
        tl.store(fields + 2, top)
        tl.store(fields + 3, (first + top_place).to(tl.float32, bitcast=True))


@triton.jit
def _finish_row(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    position_ptr,
    workspace_ptr,
    out_ids_ptr,
    out_logprobs_ptr,
    vocab_size,
    stride_row,
    stride_record,
    NUM_CHUNKS: tl.constexpr,
    CHUNKS_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
    HEADER: tl.constexpr,
    FIELDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Merge a row's chunks: id of the best score (lowest chunk wins a tie), logprob = its logit - log-sum-exp.

    Grid (row). A row that truncates is searched and drawn here.
    """
    row = tl.program_id(0)
    wait_for_previous(EARLY)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    record = workspace_ptr + row.to(tl.int64) * stride_record
    row_ptr = logits_ptr + row.to(tl.int64) * stride_row
    chunks = tl.arange(0, CHUNKS_PAD)
    inside = chunks < NUM_CHUNKS
    fields = record + HEADER + FIELDS * chunks
    tops = tl.load(fields, mask=inside, other=float("-inf"))
    totals = tl.load(fields + 1, mask=inside, other=0.0)
    results = tl.load(fields + 2, mask=inside, other=float("-inf"))
    top = tl.max(tops, axis=0)
    lse = top + tl.log(tl.sum(totals * tl.exp(tops - top), axis=0))
    lowest = tl.full([], float("-inf"), tl.float32)
    if _truncates(temperature, top_k, top_p, min_p, vocab_size):
        coldness = tl.div_rn(1.0, temperature)
        top *= coldness
        weight = tl.sum(tl.where(inside, results, 0.0) * tl.exp(tops * coldness - top), axis=0)
        lowest, best_id = _draw_survivor(
            row_ptr, record + HEADER + FIELDS * NUM_CHUNKS, vocab_size, coldness, top, weight, top_k, top_p, min_p,
            tl.load(seed_ptr + row), tl.load(position_ptr + row),
            NUM_GROUPS, GROUPS_PAD, GROUP, CANDIDATES, TILE,
        )  # fmt: skip
    else:
        _, winner = tl.max(results, axis=0, return_indices=True, return_indices_tie_break_left=True)
        winner = tl.minimum(winner, NUM_CHUNKS - 1)
        best_id = tl.load(record + HEADER + FIELDS * winner + 3).to(tl.int32, bitcast=True)
    # Among NaN any place may win: such a row gets some id, but nobody's memory.
    best_id = tl.minimum(tl.maximum(best_id, 0), vocab_size - 1)
    tl.store(record, lowest)
    tl.store(out_ids_ptr + row, best_id.to(tl.int64))
    tl.store(out_logprobs_ptr + row, tl.load(row_ptr + best_id).to(tl.float32) - lse)


@triton.jit
def _draw_survivor(
    row_ptr, groups_ptr, vocab_size, coldness, top, weight, top_k, top_p, min_p, seed, position,
    NUM_GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Return the lowest value that survives top_k, then top_p, then min_p, and the id of the best score from it up.

    `weight` is the sum of exp(value - top) over the row.
    """
    list_ptr = groups_ptr + NUM_GROUPS
    candidates_ptr = list_ptr + NUM_GROUPS
    by_count = (top_k > 0) & (top_k < vocab_size)
    cut = _cut(groups_ptr, by_count, top, weight, top_k, top_p, min_p, NUM_GROUPS, GROUPS_PAD)
    count = tl.full([], CANDIDATES + 1, tl.int32)
    if cut > float("-inf"):
        count = collect(
            row_ptr, groups_ptr, list_ptr, candidates_ptr, vocab_size, coldness, cut, float("inf"),
            NUM_GROUPS, GROUP, CANDIDATES, TILE // 2,
        )  # fmt: skip
    high = ordered_bits(top).to(tl.int64)
    low = ordered_bits(cut).to(tl.int64)
    if count <= CANDIDATES:
        places = tl.arange(0, CANDIDATES)
        inside = places < count
        values = tl.load(candidates_ptr + places, mask=inside, other=float("-inf"))
        ids = tl.load(candidates_ptr + CANDIDATES + places, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        bits = ordered_bits(values)
        weights = tl.where(inside, tl.exp(values - top), 0.0)
        if by_count:
            low = highest_reaching(bits, tl.where(inside, 1.0, 0.0), low, high, top_k.to(tl.float32), 1)
            weights = tl.where(bits >= low, weights, 0.0)
            weight = tl.sum(weights, axis=0)
        if top_p < 1.0:
            low = highest_reaching(bits, weights, low, high, _least_weight(top_p, weight), 1)
        lowest = _at_least(low, top, min_p)
        scores = tl.where(inside & (values >= lowest), values + gumbel_at(seed, position, ids), float("-inf"))
        _, place = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
        best_id = tl.load(candidates_ptr + CANDIDATES + place).to(tl.int32, bitcast=True)
    else:
        low = tl.full([], -(2**31), tl.int64)
        if by_count:
            low = highest_reaching_in_row(
                row_ptr, vocab_size, coldness, top, low, high, top_k.to(tl.float32), True, TILE
            )
            mark = low.to(tl.int32)
            weight, _, _ = row_sums(row_ptr, vocab_size, coldness, top, mark, mark, mark, mark, False, TILE)
        if top_p < 1.0:
            low = _nucleus_of_row(
                row_ptr, groups_ptr, list_ptr, candidates_ptr, vocab_size, coldness, top, low, high,
                _least_weight(top_p, weight), NUM_GROUPS, GROUP, CANDIDATES, TILE,
            )  # fmt: skip
        lowest = _at_least(low, top, min_p)
        best_id = _draw_from_row(row_ptr, vocab_size, coldness, lowest, seed, position, TILE // 2)
    return lowest, best_id


@triton.jit
def _least_weight(top_p, weight):
    """Return what a nucleus must weigh. The highest value weighs 1, so the least limit keeps it and its equals."""
    return tl.maximum(top_p * weight, 1e-30)


@triton.jit
def _at_least(low, top, min_p):
    """Return the value of the ordered bits `low`, or the bound of min_p if that is higher."""
    lowest = value_of(low.to(tl.int32))
    if min_p > 0.0:
        lowest = tl.maximum(lowest, top + tl.log(min_p))
    return lowest


@triton.jit
def _cut(groups_ptr, by_count, top, weight, top_k, top_p, min_p, NUM_GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr):
    """Return a value that no survivor lies below, nor any id that top_k and top_p count before them; -inf if unknown.

    The groups' highest values are values of the row: its k-th highest is no lower than theirs, and likewise by weight.
    """
    cut = tl.full([], float("-inf"), tl.float32)
    if by_count | (top_p < 1.0):
        groups = tl.arange(0, GROUPS_PAD)
        highest = tl.load(groups_ptr + groups, mask=groups < NUM_GROUPS, other=float("-inf"))
        weights = tl.where(groups < NUM_GROUPS, 1.0, 0.0)
        limit = top_k.to(tl.float32)
        if not by_count:
            weights = tl.exp(highest - top)
            limit = _least_weight(top_p, weight) * 1.00001  # more than enough, whatever was rounded
        lowest = tl.full([], -(2**31), tl.int64)
        # Cut off after the digit of 2**16, as if rounded down to bf16: a few more candidates for half the steps.
        bits = highest_reaching(ordered_bits(highest), weights, lowest, -lowest, limit, 1 << 16)
        cut = value_of(bits.to(tl.int32))
    else:
        cut = top + tl.log(min_p)
    return cut


@triton.jit
def _nucleus_of_row(
    row_ptr, groups_ptr, list_ptr, candidates_ptr, vocab_size, coldness, top, low, high, limit,
    NUM_GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the ordered bits at which the values from `low` up weigh `limit`, out of a whole row."""
    floor, ceiling, above = heaviest_bracket(row_ptr, vocab_size, coldness, top, low, limit, TILE)
    floor = tl.maximum(floor, value_of(low.to(tl.int32)))
    count = collect(
        row_ptr, groups_ptr, list_ptr, candidates_ptr, vocab_size, coldness, floor, ceiling,
        NUM_GROUPS, GROUP, CANDIDATES, TILE // 2,
    )  # fmt: skip
    places = tl.arange(0, CANDIDATES)
    values = tl.load(candidates_ptr + places, mask=places < tl.minimum(count, CANDIDATES), other=float("-inf"))
    weights = tl.exp(values - top)
    if (count <= CANDIDATES) & (above + tl.sum(weights, axis=0) >= limit):
        start = ordered_bits(floor).to(tl.int64)
        answer = highest_reaching(ordered_bits(values), weights, start, high, limit - above, 1)
    else:  # thousands of equal values, or the limit is out of the bracket's reach
        answer = highest_reaching_in_row(row_ptr, vocab_size, coldness, top, low, high, limit, False, TILE)
    return answer


@triton.jit
def _draw_from_row(row_ptr, vocab_size, coldness, lowest, seed, position, TILE: tl.constexpr):
    """Return the id of the best score among a row's values from `lowest` up."""
    best_score = tl.full([], float("-inf"), tl.float32)
    best_id = tl.full([], 0, tl.int32)
    for first in tl.range(0, vocab_size, TILE):
        ids = first + tl.arange(0, TILE)
        values = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32) * coldness
        values = tl.where(values >= lowest, values, float("-inf"))
        top = tl.max(values, axis=0)
        if top > float("-inf"):
            score, place = draw(values, top, seed, position, first, TILE)
            if score > best_score:  # not >=: the lowest id wins a tie
                best_score = score
                best_id = first + place
    return best_id
