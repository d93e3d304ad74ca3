"""Device functions that find the lowest value of a row that survives top_k, top_p and min_p, without sorting.

Values are compared as ordered bits, whose digits are found from the top, two bits at a time: each step sums the weights
from three marks up. The weight of a value is exp(value - top), `top` being the highest value, or 1 to count. Sums run in
an order that depends on the row alone; counts are exact, as fp32 holds every integer below 2**24.
"""
# ruff: noqa: ANN201 - device functions return values of the kernel language.

import triton
import triton.language as tl

# The search of a whole row by weight looks this far below its top, in natural units, and narrows it down 4**5 times.
_REACH: tl.constexpr = tl.constexpr(32.0)
_NARROWINGS: tl.constexpr = tl.constexpr(5)


@triton.jit
def ordered_bits(values):
    """Map fp32 to int32 so that the order of the integers is the order of the values; -0.0 counts as 0.0."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(bits):
    """Undo `ordered_bits`; what lies below the bits of -inf becomes -inf."""
    bits = tl.maximum(bits, -2139095041)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def first_unit(low, high):
    """Return the weight of the first digit that may be more than 0 in answers from low to high (int64); 0 if none may."""
    unit = tl.full([], 1 << 30, tl.int64)
    while (unit > high - low) & (unit > 0):  # high is below low in a row of NaN
        unit = unit >> 2
    return unit


@triton.jit
def highest_reaching(bits, weights, low, high, limit, LEAST: tl.constexpr):
    """Return the highest t = low + n * LEAST such that the weights of the bits >= t sum up to at least `limit`.

    `bits` and `weights` are one tile; low and high (int64) bound the answer. With LEAST = 1 the answer is one of the
    bits, as the sum changes nowhere else. If even all weights do not reach the limit: low.
    """
    answer = low
    unit = first_unit(low, high)
    while unit >= LEAST:
        reached = tl.full([], 0, tl.int64)
        for digit in tl.static_range(1, 4):
            mark = tl.minimum(answer + digit * unit, 2147483647).to(tl.int32)
            reached += (tl.sum(tl.where(bits >= mark, weights, 0.0), axis=0) >= limit).to(tl.int64)
        answer += reached * unit
        unit = unit >> 2
    return answer


@triton.jit
def row_sums(row_ptr, vocab_size, coldness, top, low, mark1, mark2, mark3, BY_COUNT: tl.constexpr, TILE: tl.constexpr):
    """Sum the weights of a row's values >= low and >= each mark, all four as ordered bits."""
    sum1 = tl.zeros([TILE], tl.float32)
    sum2 = tl.zeros([TILE], tl.float32)
    sum3 = tl.zeros([TILE], tl.float32)
    for first in tl.range(0, vocab_size, TILE):
        ids = first + tl.arange(0, TILE)
        inside = ids < vocab_size
        values = tl.load(row_ptr + ids, mask=inside, other=float("-inf")).to(tl.float32) * coldness
        bits = ordered_bits(values)
        weights = tl.where(inside & (bits >= low), 1.0 if BY_COUNT else tl.exp(values - top), 0.0)
        sum1 += tl.where(bits >= mark1, weights, 0.0)
        sum2 += tl.where(bits >= mark2, weights, 0.0)
        sum3 += tl.where(bits >= mark3, weights, 0.0)
    return tl.sum(sum1, axis=0), tl.sum(sum2, axis=0), tl.sum(sum3, axis=0)


@triton.jit
def highest_reaching_in_row(
    row_ptr, vocab_size, coldness, top, low, high, limit, BY_COUNT: tl.constexpr, TILE: tl.constexpr
):
    """Do what `highest_reaching` does with LEAST = 1 for a whole row: one pass over it for each digit."""
    answer = low
    unit = first_unit(low, high)
    while unit >= 1:
        mark1 = tl.minimum(answer + unit, 2147483647).to(tl.int32)
        mark2 = tl.minimum(answer + 2 * unit, 2147483647).to(tl.int32)
        mark3 = tl.minimum(answer + 3 * unit, 2147483647).to(tl.int32)
        sum1, sum2, sum3 = row_sums(
            row_ptr, vocab_size, coldness, top, low.to(tl.int32), mark1, mark2, mark3, BY_COUNT, TILE
        )
        reached = (sum1 >= limit).to(tl.int64) + (sum2 >= limit).to(tl.int64) + (sum3 >= limit).to(tl.int64)
        answer += reached * unit
        unit = unit >> 2
    return answer


@triton.jit
def heaviest_bracket(row_ptr, vocab_size, coldness, top, low, limit, TILE: tl.constexpr):
    """Narrow down where the weight of a row's values, from the top, reaches `limit`: a few passes over the row.

    Returns (floor, ceiling, above): the values >= ceiling weigh `above` < limit, and those >= floor reach the limit
    unless floor is out of reach (see _REACH).
    """
    unit = tl.full([], _REACH / 4, tl.float32)
    near = -unit  # distance from the top at which the limit is not yet reached
    above = tl.full([], 0.0, tl.float32)
    low_bits = low.to(tl.int32)
    for _ in tl.range(0, _NARROWINGS):
        mark1 = ordered_bits(top - (near + unit))
        mark2 = ordered_bits(top - (near + 2 * unit))
        mark3 = ordered_bits(top - (near + 3 * unit))
        sum1, sum2, sum3 = row_sums(row_ptr, vocab_size, coldness, top, low_bits, mark1, mark2, mark3, False, TILE)
        if sum3 < limit:
            above = sum3
        elif sum2 < limit:
            above = sum2
        elif sum1 < limit:
            above = sum1
        short = (sum1 < limit).to(tl.float32) + (sum2 < limit).to(tl.float32) + (sum3 < limit).to(tl.float32)
        near += short * unit
        unit = unit / 4
    return top - (near + 4 * unit), top - near, above


@triton.jit
def collect(
    row_ptr, groups_ptr, list_ptr, candidates_ptr, vocab_size, coldness, cut, ceiling,
    NUM_GROUPS: tl.constexpr, GROUP: tl.constexpr, CANDIDATES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write the values in [cut, ceiling) and their ids, in the order of ids; return how many there are.

    groups[NUM_GROUPS] holds the highest value of each GROUP ids; list[NUM_GROUPS] is scratch. candidates[0 .. CANDIDATES)
    become the values, candidates[CANDIDATES ..) the ids; what does not fit is only counted.
    """
    num_hot = tl.full([], 0, tl.int32)
    for first in tl.range(0, NUM_GROUPS, TILE):
        groups = first + tl.arange(0, TILE)
        highest = tl.load(groups_ptr + groups, mask=groups < NUM_GROUPS, other=float("-inf"))
        hot = ((groups < NUM_GROUPS) & (highest >= cut)).to(tl.int32)
        places = num_hot + tl.cumsum(hot, axis=0) - 1
        tl.store(list_ptr + places, groups.to(tl.float32, bitcast=True), mask=hot > 0)
        num_hot += tl.sum(hot, axis=0)
    tl.debug_barrier()  # other threads of the program read the list
    count = tl.full([], 0, tl.int32)
    for first in tl.range(0, num_hot * GROUP, TILE):
        members = first + tl.arange(0, TILE)
        inside = members < num_hot * GROUP
        group = tl.load(list_ptr + members // GROUP, mask=inside, other=0.0).to(tl.int32, bitcast=True)
        ids = group * GROUP + members % GROUP
        inside = inside & (ids < vocab_size)
        values = tl.load(row_ptr + ids, mask=inside, other=float("-inf")).to(tl.float32) * coldness
        hot = (inside & (values >= cut) & (values < ceiling)).to(tl.int32)
        places = count + tl.cumsum(hot, axis=0) - 1
        fits = (hot > 0) & (places < CANDIDATES)
        tl.store(candidates_ptr + places, values, mask=fits)
        tl.store(candidates_ptr + CANDIDATES + places, ids.to(tl.float32, bitcast=True), mask=fits)
        count += tl.sum(hot, axis=0)
    tl.debug_barrier()  # other threads of the program read the candidates
    return count
