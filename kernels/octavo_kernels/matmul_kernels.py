"""Device code of the matrix products: tiles of x @ w.T whose every element is one chain of sums along K.

An element is acc = x[k : k + 16] . w[k : k + 16] + acc, k ascending, in one fp32 accumulator, whatever the tile: tiles
differ in which elements they compute together, never in how one is summed.
"""
# ruff: noqa: ANN201 - device functions return values of the kernel language.

import triton
import triton.language as tl

from octavo_kernels.overlap import prefetch_rows, wait_for_previous


@triton.jit
def tile_place(tile, num_row_tiles, num_column_tiles, GROUP: tl.constexpr):
    """Row and column of a tile in grouped order: GROUP row tiles share a strip of w while it is in the L2 cache."""
    strip = GROUP * num_column_tiles
    first = tile // strip * GROUP
    height = tl.minimum(num_row_tiles - first, GROUP)
    return first + tile % strip % height, tile % strip // height


@triton.jit
def load_x(x, row, k, M, K, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr, WHOLE_K: tl.constexpr,
           UPCAST: tl.constexpr):  # fmt: skip
    """Load [ROWS, DEPTH] at (row, k) of x [M, K]; what lies outside reads as 0."""
    if TMA:
        tile = x.load([row, k])
    else:
        rows = row + tl.arange(0, ROWS)
        tile = load_rows(x, rows, rows < M, k, K, stride, DEPTH, WHOLE_K)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_w(w, column, k, N, K, stride, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, TMA: tl.constexpr,
           WHOLE_K: tl.constexpr, UPCAST: tl.constexpr, GATED: tl.constexpr):  # fmt: skip
    """Load [COLUMNS, DEPTH] at (column, k) of w [N, K]; what lies outside reads as 0.

    Gated, w is [2 N, K] (described to TMA as [2, N, K]), and the tile is COLUMNS rows of each half: [2 COLUMNS, DEPTH].
    """
    if TMA and GATED:
        tile = tl.reshape(w.load([0, column, k]), [2 * COLUMNS, DEPTH])
    elif TMA:
        tile = w.load([column, k])
    elif GATED:
        index = tl.arange(0, 2 * COLUMNS)
        rows = column + index % COLUMNS
        tile = load_rows(w, index // COLUMNS * N + rows, rows < N, k, K, stride, DEPTH, WHOLE_K)
    else:
        rows = column + tl.arange(0, COLUMNS)
        tile = load_rows(w, rows, rows < N, k, K, stride, DEPTH, WHOLE_K)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_rows(source, rows, present, k, K, stride, DEPTH: tl.constexpr, WHOLE_K: tl.constexpr):
    """Load by pointers DEPTH elements from k on of each row that is present; others, and those from K on, read as 0."""
    cols = k + tl.arange(0, DEPTH)
    inside = present[:, None]
    if not WHOLE_K:
        inside = inside & (cols < K)[None, :]
    return tl.load(source + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=inside, other=0.0)


@triton.jit
def multiply(x, w, acc, SWAPPED: tl.constexpr):
    """Add x [ROWS, DEPTH] @ w [COLUMNS, DEPTH].T to acc; swapped, acc is [COLUMNS, ROWS].

    Warp-group instructions want 64 rows on the left and as few as 8 on the right: a few rows of x go to the right.
    """
    if SWAPPED:
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    else:
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    return acc


@triton.jit
def rounded(acc, bias_ptr, cols, N, dtype: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Finish sums [ROWS, COLUMNS]: add the bias in fp32, round once."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    return acc.to(dtype)


@triton.jit
def store_tile(acc, up, bias_ptr, residual_ptr, out_ptr, row, column, M, N, stride_residual, stride_out,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr, SWAPPED: tl.constexpr, HAS_BIAS: tl.constexpr,
               GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr):  # fmt: skip
    """Round a tile of sums and store it, after silu(gate) * up if gated, added to the residual if there is one.

    The gate is acc [COLUMNS, ROWS] beside up if swapped, else acc [ROWS, 2 COLUMNS] holds both. Values are rounded where separate kernels would store them, so fusing changes no bit.
    """
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    rows = row + tl.arange(0, ROWS)
    cols = column + tl.arange(0, COLUMNS)
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    if SWAPPED:
        acc = tl.trans(acc)
    if GATED:
        if SWAPPED:
            gate, up = acc, tl.trans(up)
        else:  # moves nothing: a column's gate and up are in registers of one thread
            gate, up = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS]), [0, 2, 1]))
        gate = rounded(gate, bias_ptr, cols, N, dtype, HAS_BIAS).to(tl.float32)
        up = rounded(up, bias_ptr + N, cols, N, dtype, HAS_BIAS).to(tl.float32)
        silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
        y = (silu * up).to(dtype)
    else:
        y = rounded(acc, bias_ptr, cols, N, dtype, HAS_BIAS)
    if HAS_RESIDUAL:
        addresses = residual_ptr + rows.to(tl.int64)[:, None] * stride_residual + cols[None, :]
        residual = tl.load(addresses, mask=inside, other=0.0)
        y = (residual.to(tl.float32) + y.to(tl.float32)).to(dtype)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * stride_out + cols[None, :], y, mask=inside)


@triton.jit(do_not_specialize=["M"])
def _product_tile(
    x,
    w,
    w_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_x,
    stride_w,
    stride_residual,
    stride_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    SWAPPED: tl.constexpr,
    X_TMA: tl.constexpr,
    W_TMA: tl.constexpr,
    WHOLE_K: tl.constexpr,
    UPCAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    EARLY: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Compute one tile [ROWS, COLUMNS] of out = x @ w.T (+ bias). Grid (tile).

    Gated, w is [2 N, K]: N rows of the gate's weight, then N of the up projection's. If EARLY, the program is
    launched before the kernel that writes x has ended, waits for its end, and lets the next kernel do the same.
    Meanwhile PREFETCH bytes of each of its rows of w come into the L2 cache.
    """
    tl.assume(K > 0)  # else a way around the loop sets the accumulators, and wgmma instructions wait for each other
    row_tile, column_tile = tile_place(tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS), GROUP)
    row, column = row_tile * ROWS, column_tile * COLUMNS
    if PREFETCH > 0:
        width: tl.constexpr = 2 * COLUMNS if GATED else COLUMNS
        index = tl.arange(0, width)
        w_rows = index // COLUMNS * N + tl.minimum(column + index % COLUMNS, N - 1)
        prefetch_rows(w_ptr, w_rows, stride_w, width, PREFETCH, 128 // width if width < 128 else 1)
    wait_for_previous(EARLY)
    if SWAPPED:
        acc = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
    elif GATED:
        acc = tl.zeros([ROWS, 2 * COLUMNS], dtype=tl.float32)
    else:
        acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    up = acc
    for k in range(0, K, DEPTH):
        x_tile = load_x(x, row, k, M, K, stride_x, ROWS, DEPTH, X_TMA, WHOLE_K, UPCAST)
        if SWAPPED and GATED:
            # A tile joined from both halves would go through registers on its way to the left operand.
            gate_tile = load_w(w, column, k, 2 * N, K, stride_w, COLUMNS, DEPTH, W_TMA, WHOLE_K, UPCAST, False)
            acc = multiply(x_tile, gate_tile, acc, True)
            up_tile = load_w(w, N + column, k, 2 * N, K, stride_w, COLUMNS, DEPTH, W_TMA, WHOLE_K, UPCAST, False)
            up = multiply(x_tile, up_tile, up, True)
        else:
            w_tile = load_w(w, column, k, N, K, stride_w, COLUMNS, DEPTH, W_TMA, WHOLE_K, UPCAST, GATED)
            acc = multiply(x_tile, w_tile, acc, SWAPPED)
    store_tile(acc, up, bias_ptr, residual_ptr, out_ptr, row, column, M, N, stride_residual, stride_out,
               ROWS, COLUMNS, SWAPPED, HAS_BIAS, GATED, HAS_RESIDUAL)  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def _product_persistent(
    x,
    w,
    bias_ptr,
    residual_ptr,
    out_ptr,
    M,
    N,
    K,
    stride_x,
    stride_w,
    stride_residual,
    stride_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    X_TMA: tl.constexpr,
    W_TMA: tl.constexpr,
    WHOLE_K: tl.constexpr,
    UPCAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """Compute every PROGRAMS-th tile of out = x @ w.T (+ bias): loads of the next tile start while one is stored.

    Grid (PROGRAMS). Weights as in `_product_tile`.
    """
    tl.assume(K > 0)  # as in `_product_tile`
    num_row_tiles, num_column_tiles = tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    width: tl.constexpr = 2 * COLUMNS if GATED else COLUMNS
    # The store finds its tile by a counter of its own: loads of the next tile must not wait for it.
    stored = tl.program_id(0) - PROGRAMS
    for tile in tl.range(tl.program_id(0), num_row_tiles * num_column_tiles, PROGRAMS, flatten=True):
        row_tile, column_tile = tile_place(tile, num_row_tiles, num_column_tiles, GROUP)
        row, column = row_tile * ROWS, column_tile * COLUMNS
        acc = tl.zeros([ROWS, width], dtype=tl.float32)
        for k in range(0, K, DEPTH):
            x_tile = load_x(x, row, k, M, K, stride_x, ROWS, DEPTH, X_TMA, WHOLE_K, UPCAST)
            w_tile = load_w(w, column, k, N, K, stride_w, COLUMNS, DEPTH, W_TMA, WHOLE_K, UPCAST, GATED)
            acc = multiply(x_tile, w_tile, acc, False)
        stored += PROGRAMS
        row_tile, column_tile = tile_place(stored, num_row_tiles, num_column_tiles, GROUP)
        store_tile(acc, acc, bias_ptr, residual_ptr, out_ptr, row_tile * ROWS, column_tile * COLUMNS, M, N,
                   stride_residual, stride_out, ROWS, COLUMNS, False, HAS_BIAS, GATED, HAS_RESIDUAL)  # fmt: skip
