"""The random numbers of `philox` inside Triton kernels, and the draw that they decide (Gumbel-max)."""
# ruff: noqa: ANN201 - device functions return values of the kernel language.

import triton
import triton.language as tl


@triton.jit
def random_words(seed, position, blocks, COUNT: tl.constexpr):
    """Random words of the ids 4 * blocks .. 4 * blocks + 3, flattened to [COUNT]."""
    zero = tl.zeros_like(blocks)
    word0, word1, word2, word3 = tl.philox(seed, blocks, zero + position.to(tl.uint32), zero, zero)
    # join() appends an axis: pairing 0 with 2 and 1 with 3 first makes the flat order 0, 1, 2, 3.
    return tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [COUNT])


@triton.jit
def uniform(words):
    """Map 32-bit words to fp32 numbers inside (0, 1), as `philox.uniform`."""
    return tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)


@triton.jit
def gumbel(seed, position, blocks, COUNT: tl.constexpr):
    """Noise of the ids 4 * blocks .. 4 * blocks + 3, flattened to [COUNT], as `philox.gumbel`."""
    return -tl.log(-tl.log(uniform(random_words(seed, position, blocks, COUNT))))


@triton.jit
def gumbel_at(seed, position, ids):
    """Noise of some ids, as `philox.gumbel_at`."""
    blocks = (ids // 4).to(tl.uint32)
    zero = blocks * 0
    word0, word1, word2, word3 = tl.philox(seed, blocks, zero + position.to(tl.uint32), zero, zero)
    low = tl.where(ids % 2 == 0, word0, word1)
    high = tl.where(ids % 2 == 0, word2, word3)
    return -tl.log(-tl.log(uniform(tl.where(ids % 4 < 2, low, high))))


@triton.jit
def draw(values, top, seed, position, first, COUNT: tl.constexpr):
    """Return the best score = value + noise of the ids first .. first + COUNT - 1, and its place (the lowest if tied).

    `values` [COUNT] belong to those ids, `top` is the highest of them (any number if all are -inf).

    Two logarithms an id would take longer than reading the logits. But exp(-score) = -log(u) * exp(-value), and
    -log(u) >= 1 - u, nearly equal for u near 1, where winners are. So the id with the least (1 - u) * exp(-value) has
    the best score unless that bound of another id lies below its exp(-score): only then are all logarithms needed.
    """
    blocks = (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    numbers = uniform(random_words(seed, position, blocks, COUNT))
    bounds = (1.0 - numbers) * tl.exp(top - values)
    _, place = tl.min(bounds, axis=0, return_indices=True, return_indices_tie_break_left=True)
    value = tl.sum(tl.where(tl.arange(0, COUNT) == place, values, 0.0), axis=0)
    score = value + gumbel_at(seed, position, first + place)
    # A thousandth more than enough for what was rounded.
    num_possible = tl.sum((bounds <= tl.exp(top - score) * 1.001).to(tl.int32), axis=0)
    if num_possible > 1:
        scores = values - tl.log(-tl.log(numbers))
        score, place = tl.max(scores, axis=0, return_indices=True, return_indices_tie_break_left=True)
    return score, place
