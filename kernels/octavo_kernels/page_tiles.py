"""Device code that attention kernels share: whose a block is, addresses of paged tokens, scores, the online softmax step."""
# ruff: noqa: ANN201 - device functions return values of the kernel language.

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def find_sequence(cu_q_ptr, block, batch, BLOCK_TOKENS: tl.constexpr):
    """Return the last sequence whose first block, cu_q[seq] // BLOCK_TOKENS + seq, is at most `block`."""
    low = 0
    high = batch - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_q_ptr + middle) // BLOCK_TOKENS + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def token_offsets(
    table_ptr,
    first,
    stop,
    stride_page,
    stride_token,
    TOKENS: tl.constexpr,
    PAGE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Offsets (int64 [TOKENS]) of the tokens first .. first + TOKENS - 1 of one sequence in a [P, Hk, PAGE, D] view.

    `first` is a multiple of TOKENS. A page id is read once per page, not per token, and the offsets carry their
    divisibility to the compiler: without it the loads of K and V shrink to 2 bytes and leave the pipeline.
    """
    if TOKENS <= PAGE:
        page = tl.load(table_ptr + first // PAGE).to(tl.int64)
        offsets = page * stride_page + (first % PAGE + tl.arange(0, TOKENS)).to(tl.int64) * stride_token
    else:
        slots = first // PAGE + tl.arange(0, TOKENS // PAGE)
        if MASKED:
            pages = tl.load(table_ptr + slots, mask=slots * PAGE < stop, other=0).to(tl.int64)
        else:
            pages = tl.load(table_ptr + slots).to(tl.int64)
        inside = tl.arange(0, PAGE).to(tl.int64) * stride_token
        offsets = tl.reshape(pages[:, None] * stride_page + inside[None, :], [TOKENS])
    return tl.multiple_of(offsets, 16)


@triton.jit
def load_tile(
    ptr,
    offsets,
    tokens,
    start,
    stop,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Load [TOKENS, D_PAD] of K or V. Tokens outside start .. stop - 1 read as 0: their pages may hold NaN."""
    dims = tl.arange(0, D_PAD)
    addresses = ptr + offsets[:, None] + dims[None, :]
    if MASKED:
        present = (tokens >= start) & (tokens < stop)
        if D == D_PAD:
            tile = tl.load(addresses, mask=present[:, None], other=0.0)
        else:
            tile = tl.load(addresses, mask=present[:, None] & (dims < D)[None, :], other=0.0)
    elif D == D_PAD:
        tile = tl.load(addresses)
    else:
        tile = tl.load(addresses, mask=(dims < D)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def raw_scores(q, k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Scores of q [ROWS, D_PAD] and k [TOKENS, D_PAD], and the factor that turns them into units of log2."""
    dots = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:
        # tanh(x) = 2 sigmoid(2 x) - 1; the cap acts on natural units.
        return tl.fma(tl.sigmoid(dots * (2.0 * scale / softcap)), 2.0, -1.0), softcap * LOG2E
    return dots, scale * LOG2E


@triton.jit
def softmax_weights(scores, factor, top, total):
    """Fold a tile of scores [ROWS, TOKENS] into the running (top, total); the caller multiplies weights and values.

    Returns the new top and total, the weights exp2(s - top) with s = score * factor in log2 units, and the factor by
    which everything summed so far shrinks (Milakov and Gimelshein, arXiv 1805.02867). A tile that is masked for a row
    leaves that row bitwise unchanged. Every rounding is spelled out (fma): left to the compiler, two kernels or a tile
    with and one without a mask would differ in the last bit.
    """
    new_top = tl.maximum(top, tl.max(scores, axis=1) * factor)
    safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row with no key yet: weights of 0, not NaN
    weights = tl.exp2(tl.fma(scores, factor, 0.0 - safe_top[:, None]))
    shrink = tl.exp2(top - safe_top)
    return new_top, tl.fma(total, shrink, tl.sum(weights, axis=1)), weights, shrink


@triton.jit
def fold_state(top, total, acc, chunk_top, chunk_total, chunk_acc):
    """Fold the state of a chunk of keys into the state of all chunks before it; each is (top, total, acc).

    The only place where chunks meet, so that all kernels round alike. Folding an empty state, or folding into one,
    changes no bit.
    """
    new_top = tl.maximum(top, chunk_top)
    safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    shrink, weight = tl.exp2(top - safe_top), tl.exp2(chunk_top - safe_top)
    return (
        new_top,
        tl.fma(chunk_total, weight, total * shrink),
        tl.fma(chunk_acc, weight[:, None], acc * shrink[:, None]),
    )


@triton.jit
def finish_softmax(top, total, acc, sink, HAS_SINKS: tl.constexpr):
    """Turn a running state into (output [ROWS, D_PAD], natural lse [ROWS]); a row without keys gives 0 and -inf.

    sink [ROWS] is a natural score that joins the denominator only.
    """
    if HAS_SINKS:
        sink_log2 = sink * LOG2E
        new_top = tl.maximum(top, sink_log2)
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - safe_top)
        total = tl.fma(total, shrink, tl.exp2(sink_log2 - safe_top))
        acc = acc * shrink[:, None]
        top = new_top
    empty = total == 0.0
    divisor = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), (top + tl.log2(divisor)) * LN2)
    return acc / divisor[:, None], lse
