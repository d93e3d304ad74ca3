"""Device code of extend attention for Hopper GPUs, in Gluon: some warps load pages, two groups of four warps compute.

The Triton kernel of `extend_attention` reads every tile of keys and values once for 64 rows of queries. Here 128 rows share a
tile: each group of warps computes 64 of them, with the rounding of `page_tiles`, so with the same bits. While a group turns
the scores of one tile into weights, the tensor cores add up its tile before, or compute for the other group (both as in
FlashAttention-3, arXiv 2407.08608).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from octavo_kernels.page_tiles import LOG2E, find_sequence, finish_softmax, fold_state, softmax_weights

ROWS = 128  # of queries (tokens x heads of one group) that a program computes at a time
TOKENS = 64  # keys of a tile
STAGES = 4  # tiles of keys, and of values, that are on their way or in use
HEAD_DIM = 128
BOX = 64  # elements of a row that one copy brings: 128 bytes, as the tensor cores want them in shared memory

_ROWS = gl.constexpr(ROWS)
_TOKENS = gl.constexpr(TOKENS)
_STAGES = gl.constexpr(STAGES)
_BOX = gl.constexpr(BOX)
_GROUP_ROWS = gl.constexpr(ROWS // 2)
_D = gl.constexpr(HEAD_DIM)
_HALVES = gl.constexpr(HEAD_DIM // BOX)

# How four warps hold the results of both products, the weights between them, and what they load and store (16 bytes a
# thread). A row's statistics lie in the same registers beside both results, so to convert between these moves nothing.
_SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TOKENS, 16]))
_OUTPUTS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16]))
_SCORE_ROWS = gl.constexpr(gl.SliceLayout(1, _SCORES.value))
_OUTPUT_ROWS = gl.constexpr(gl.SliceLayout(1, _OUTPUTS.value))
_WEIGHTS = gl.constexpr(gl.DotOperandLayout(0, _OUTPUTS.value, 2))
_WIDE = gl.constexpr(gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0]))


@gluon.jit
def _find_block(
    turn, num_items, num_blocks, batch, per_sequence, cu_q_ptr, seq_lens_ptr,
    KV_HEADS: gl.constexpr, BLOCK_TOKENS: gl.constexpr,
):  # fmt: skip
    """Return a program's work in its turn: (kv head, sequence, first token of the block, first row, q_len, length, tiles).

    With per_sequence > 0, block b is block b // batch of sequence b % batch; else blocks are numbered as in
    `extend_attention`. Work begins with the last blocks, whose queries see the most keys, and where these lie in order,
    every other turn runs through the programs backwards, so that all get alike. A block that does not exist, or belongs
    to no sequence, has no tiles and no tokens.
    """
    programs = gl.num_programs(0)
    program = gl.program_id(0)
    if (per_sequence > 0) & (turn % 2 == 1):
        program = programs - 1 - program
    item = turn * programs + program
    kv_head = item % KV_HEADS
    block = gl.maximum(num_blocks - 1 - item // KV_HEADS, 0)
    seq = block % batch
    if per_sequence == 0:
        seq = find_sequence(cu_q_ptr, block, batch, BLOCK_TOKENS)
    q_start = gl.load(cu_q_ptr + seq)
    first_token = block // batch * BLOCK_TOKENS
    if per_sequence == 0:
        first_token = (block - (q_start // BLOCK_TOKENS + seq)) * BLOCK_TOKENS
    q_len = gl.load(cu_q_ptr + seq + 1) - q_start
    length = gl.load(seq_lens_ptr + seq)
    if (item >= num_items) | (first_token < 0):
        first_token = 0
        q_len = 0
    num_tiles = 0
    if first_token < q_len:
        stop = gl.minimum(length, length - q_len + first_token + BLOCK_TOKENS)
        num_tiles = (stop + _TOKENS - 1) // _TOKENS
    return kv_head, seq, first_token, q_start, q_len, length, num_tiles


@gluon.jit
def _copy_tile(
    rows_desc, table, first, num_pages, page_rows, head_row, boxes, box, full, empty, is_empty,
    HALF: gl.constexpr, PAGE: gl.constexpr,
):  # fmt: skip
    """Copy BOX columns of a tile's pages, from page `first` of the sequence on, when its buffer is empty."""
    PAGES: gl.constexpr = _TOKENS // PAGE
    BYTES: gl.constexpr = PAGE * _BOX * 2
    if first + PAGES <= num_pages:
        rows = ()
        for page in gl.static_range(PAGES):
            row = gl.load(table + first + page) * page_rows + head_row
            rows = rows + (row,)  # type: ignore[assignment]  # noqa: RUF005 - Gluon knows no stars
        mbarrier.wait(empty, is_empty)
        mbarrier.expect(full, BYTES * PAGES)
        for page in gl.static_range(PAGES):
            tma.async_copy_global_to_shared(rows_desc, [rows[page], HALF * _BOX], full, boxes.index(box + page))
    else:  # the sequence ends within the tile
        mbarrier.wait(empty, is_empty)
        for pages in gl.static_range(1, PAGES):
            mbarrier.expect(full, BYTES * pages, pred=num_pages - first == pages)
        for page in gl.static_range(PAGES - 1):
            exists = first + page < num_pages
            row = gl.load(table + first + page, mask=exists, other=0) * page_rows + head_row
            tma.async_copy_global_to_shared(rows_desc, [row, HALF * _BOX], full, boxes.index(box + page), pred=exists)


@gluon.jit
def _load_half(
    HALF: gl.constexpr,
    tensors,
    boxes,
    barriers,
    work,
    strides,
    GROUP: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
):
    """Copy BOX columns of all tiles of keys and values of a program's items, as buffers become empty. One warp."""
    k_rows, v_rows, table_ptr, cu_q_ptr, seq_lens_ptr = tensors
    key_boxes, value_boxes = boxes
    keys_full, keys_empty, values_full, values_empty = barriers
    num_items, num_blocks, batch, per_sequence = work
    page_rows, head_rows, stride_table = strides
    PAGES: gl.constexpr = _TOKENS // PAGE
    count = 0
    for turn in range((num_items + gl.num_programs(0) - 1) // gl.num_programs(0)):
        kv_head, seq, _first_token, _q_start, _q_len, length, num_tiles = _find_block(
            turn, num_items, num_blocks, batch, per_sequence, cu_q_ptr, seq_lens_ptr, KV_HEADS, _ROWS // GROUP
        )
        table = table_ptr + seq.to(gl.int64) * stride_table
        head_row = kv_head * head_rows
        num_pages = (length + PAGE - 1) // PAGE
        for tile in range(num_tiles):
            stage = count % _STAGES
            is_empty = (count // _STAGES + 1) & 1
            box = (stage * _HALVES + HALF) * PAGES
            _copy_tile(
                k_rows, table, tile * PAGES, num_pages, page_rows, head_row, key_boxes, box, keys_full.index(stage),
                keys_empty.index(stage), is_empty, HALF, PAGE,
            )  # fmt: skip
            _copy_tile(
                v_rows, table, tile * PAGES, num_pages, page_rows, head_row, value_boxes, box, values_full.index(stage),
                values_empty.index(stage), is_empty, HALF, PAGE,
            )  # fmt: skip
            count += 1


@gluon.jit
def _weigh_tile(scores, tile, clear_tiles, query_pos, factor, top, total):
    """Do `softmax_weights` for a tile of keys, of which the first clear_tiles lie before all queries."""
    if tile >= clear_tiles:
        columns = gl.expand_dims(gl.arange(0, _TOKENS, gl.SliceLayout(0, _SCORES)), 0)
        scores = gl.where(tile * _TOKENS + columns <= query_pos, scores, float("-inf"))
    return softmax_weights(scores, factor, top, total)


@gluon.jit
def _clear_end(tile_values, first_token, length):
    """Zero the values of a tile beyond the sequence's end: a page may hold NaN there, and 0 * NaN is NaN."""
    tokens = gl.expand_dims(first_token + gl.arange(0, _TOKENS, gl.SliceLayout(1, _WIDE)), 1)
    loaded = tile_values.load(_WIDE)
    tile_values.store(gl.where(tokens < length, loaded, gl.zeros_like(loaded)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _attend_tiles(
    queries, tiles, barriers, count, num_tiles, first_pos, length, factor, GROUP: gl.constexpr, CHUNK: gl.constexpr,
    FIRST_ROW: gl.constexpr,
):  # fmt: skip
    """Attend with one group's rows of queries over `num_tiles` > 0 tiles; return (top, total, acc) as of `page_tiles`.

    While the scores of one tile become weights, the tensor cores add up the tile before. `count` tells how many tiles
    have gone through the buffers before.
    """
    keys, values = tiles
    keys_full, keys_empty, values_full, values_empty = barriers
    dtype: gl.constexpr = queries.dtype
    rows = FIRST_ROW + gl.arange(0, _GROUP_ROWS, _SCORE_ROWS)
    query_pos = gl.expand_dims(first_pos + rows // GROUP, 1)
    clear_tiles = (first_pos + 1) // _TOKENS  # tiles that every row sees whole
    top = gl.full([_GROUP_ROWS], float("-inf"), gl.float32, _SCORE_ROWS)
    total = gl.zeros([_GROUP_ROWS], gl.float32, _SCORE_ROWS)
    acc = gl.zeros([_GROUP_ROWS, _D], gl.float32, _OUTPUTS)
    # Of all chunks but the last one.
    all_top, all_total, all_acc = gl.convert_layout(top, _OUTPUT_ROWS), gl.convert_layout(total, _OUTPUT_ROWS), acc
    none = gl.zeros([_GROUP_ROWS, _TOKENS], gl.float32, _SCORES)
    stage = count % _STAGES
    mbarrier.wait(keys_full.index(stage), count // _STAGES & 1)
    scores = warpgroup_mma(queries, keys.index(stage).permute((1, 0)), none, use_acc=False)
    mbarrier.arrive(keys_empty.index(stage))
    top, total, raw_weights, shrink = _weigh_tile(scores, 0, clear_tiles, query_pos, factor, top, total)
    weights = gl.convert_layout(raw_weights.to(dtype), _WEIGHTS)
    for tile in range(1, num_tiles):
        last_stage, was_full = stage, count // _STAGES & 1
        count += 1
        stage = count % _STAGES
        mbarrier.wait(keys_full.index(stage), count // _STAGES & 1)
        mbarrier.wait(values_full.index(last_stage), was_full)  # here, not amid the softmax: it holds all warps
        coming_scores = warpgroup_mma(queries, keys.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
        coming_acc = warpgroup_mma(weights, values.index(last_stage), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(coming_scores,))
        mbarrier.arrive(keys_empty.index(stage))
        last_top, last_total = top, total
        if CHUNK > 0:
            top = gl.where(tile * _TOKENS % CHUNK == 0, float("-inf"), top)
            total = gl.where(tile * _TOKENS % CHUNK == 0, 0.0, total)
        top, total, raw_weights, shrink = _weigh_tile(scores, tile, clear_tiles, query_pos, factor, top, total)
        acc, _ = warpgroup_mma_wait(deps=(coming_acc, weights))
        mbarrier.arrive(values_empty.index(last_stage))
        weights = gl.convert_layout(raw_weights.to(dtype), _WEIGHTS)
        if CHUNK > 0:  # noqa: SIM102 - the compiler knows this one
            if tile * _TOKENS % CHUNK == 0:
                all_top, all_total, all_acc = fold_state(
                    all_top, all_total, all_acc,
                    gl.convert_layout(last_top, _OUTPUT_ROWS), gl.convert_layout(last_total, _OUTPUT_ROWS), acc,
                )  # fmt: skip
                acc = gl.zeros([_GROUP_ROWS, _D], gl.float32, _OUTPUTS)
        acc = acc * gl.expand_dims(gl.convert_layout(shrink, _OUTPUT_ROWS), 1)
    mbarrier.wait(values_full.index(stage), count // _STAGES & 1)
    if num_tiles * _TOKENS > length:
        _clear_end(values.index(stage), (num_tiles - 1) * _TOKENS, length)
    acc = warpgroup_mma(weights, values.index(stage), acc)
    mbarrier.arrive(values_empty.index(stage))
    out_top, out_total = gl.convert_layout(top, _OUTPUT_ROWS), gl.convert_layout(total, _OUTPUT_ROWS)
    if CHUNK > 0:
        out_top, out_total, acc = fold_state(all_top, all_total, all_acc, out_top, out_total, acc)
    return out_top, out_total, acc


@gluon.jit
def _attend_rows(
    PART: gl.constexpr,
    tensors,
    tiles,
    barriers,
    scale,
    work,
    strides,
    GROUP: gl.constexpr,
    KV_HEADS: gl.constexpr,
    CHUNK: gl.constexpr,
    HAS_LSE: gl.constexpr,
):
    """Compute one half of the rows of all of a program's items: softmax(scale * q k^T + causal mask) v. Four warps."""
    q_ptr, out_ptr, lse_ptr, cu_q_ptr, seq_lens_ptr = tensors
    queries, keys, values = tiles
    num_items, num_blocks, batch, per_sequence = work
    stride_q_row, stride_q_head, stride_out_row, stride_out_head = strides
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    BLOCK_TOKENS: gl.constexpr = _ROWS // GROUP
    FIRST_ROW: gl.constexpr = PART * _GROUP_ROWS
    wide_rows = FIRST_ROW + gl.arange(0, _GROUP_ROWS, gl.SliceLayout(1, _WIDE))
    wide_dims = gl.expand_dims(gl.arange(0, _D, gl.SliceLayout(0, _WIDE)), 0)
    rows = FIRST_ROW + gl.arange(0, _GROUP_ROWS, _SCORE_ROWS)
    my_queries = queries.index(PART)
    count = 0
    for turn in range((num_items + gl.num_programs(0) - 1) // gl.num_programs(0)):
        kv_head, _seq, first_token, q_start, q_len, length, num_tiles = _find_block(
            turn, num_items, num_blocks, batch, per_sequence, cu_q_ptr, seq_lens_ptr, KV_HEADS, BLOCK_TOKENS
        )
        if first_token < q_len:
            wide_token = first_token + wide_rows // GROUP
            row = gl.expand_dims((q_start + wide_token).to(gl.int64), 1)
            head = gl.expand_dims(kv_head * GROUP + wide_rows % GROUP, 1)
            present = gl.expand_dims((wide_rows < BLOCK_TOKENS * GROUP) & (wide_token < q_len), 1)
            my_queries.store(
                gl.load(q_ptr + row * stride_q_row + head * stride_q_head + wide_dims, mask=present, other=0.0)
            )
            fence_async_shared()
            gl.thread_barrier()
            top = gl.full([_GROUP_ROWS], float("-inf"), gl.float32, _OUTPUT_ROWS)
            total = gl.zeros([_GROUP_ROWS], gl.float32, _OUTPUT_ROWS)
            acc = gl.zeros([_GROUP_ROWS, _D], gl.float32, _OUTPUTS)
            if num_tiles > 0:  # else the sequence has no keys
                top, total, acc = _attend_tiles(
                    my_queries, (keys, values), barriers, count, num_tiles, length - q_len + first_token, length,
                    scale * LOG2E, GROUP, CHUNK, FIRST_ROW,
                )  # fmt: skip
                count += num_tiles
            out, lse = finish_softmax(top, total, acc, gl.zeros_like(total), False)
            out_offsets = row * stride_out_row + head * stride_out_head + wide_dims
            gl.store(out_ptr + out_offsets, gl.convert_layout(out.to(dtype), _WIDE), mask=present)
            if HAS_LSE:
                token = first_token + rows // GROUP
                lse_row = (q_start + token).to(gl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + rows % GROUP
                gl.store(
                    lse_ptr + lse_row,
                    gl.convert_layout(lse, _SCORE_ROWS),
                    mask=(rows < BLOCK_TOKENS * GROUP) & (token < q_len),
                )


@gluon.jit(do_not_specialize=["num_items", "num_blocks", "batch", "per_sequence"])
def _extend_items(
    q_ptr,
    k_rows,
    v_rows,
    table_ptr,
    cu_q_ptr,
    seq_lens_ptr,
    out_ptr,
    lse_ptr,
    scale,
    num_items,
    num_blocks,
    batch,
    per_sequence,
    page_rows,
    head_rows,
    stride_table,
    stride_q_row,
    stride_q_head,
    stride_out_row,
    stride_out_head,
    GROUP: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    CHUNK: gl.constexpr,
    HAS_LSE: gl.constexpr,
):
    """Attention of ROWS // GROUP query tokens of one sequence and one key/value head an item. Grid: any number of programs.

    k_rows and v_rows describe the pages as rows [any, D]: page p, head h and token t are row
    p * page_rows + h * head_rows + t.
    """
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    PAGES: gl.constexpr = _TOKENS // PAGE
    SWIZZLED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    # The boxes of a tile make up what the tensor cores read as [TOKENS, D].
    key_boxes = gl.allocate_shared_memory(dtype, [_STAGES * _HALVES * PAGES, PAGE, _BOX], SWIZZLED)
    value_boxes = gl.allocate_shared_memory(dtype, [_STAGES * _HALVES * PAGES, PAGE, _BOX], SWIZZLED)
    keys = key_boxes._reinterpret(dtype, [_STAGES, _TOKENS, _D], SWIZZLED)  # noqa: SLF001 - there is no other way
    values = value_boxes._reinterpret(dtype, [_STAGES, _TOKENS, _D], SWIZZLED)  # noqa: SLF001
    queries = gl.allocate_shared_memory(dtype, [2, _GROUP_ROWS, _D], SWIZZLED)
    keys_full = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    keys_empty = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    values_full = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    values_empty = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    for stage in gl.static_range(_STAGES):
        mbarrier.init(keys_full.index(stage), count=_HALVES)
        mbarrier.init(keys_empty.index(stage), count=2)
        mbarrier.init(values_full.index(stage), count=_HALVES)
        mbarrier.init(values_empty.index(stage), count=2)
    fence_async_shared()
    gl.thread_barrier()
    barriers = (keys_full, keys_empty, values_full, values_empty)
    work = (num_items, num_blocks, batch, per_sequence)
    rows = (q_ptr, out_ptr, lse_ptr, cu_q_ptr, seq_lens_ptr)
    tiles = (queries, keys, values)
    strides = (stride_q_row, stride_q_head, stride_out_row, stride_out_head)
    pages = (k_rows, v_rows, table_ptr, cu_q_ptr, seq_lens_ptr)
    boxes = (key_boxes, value_boxes)
    page_strides = (page_rows, head_rows, stride_table)
    gl.warp_specialize(
        [
            (_attend_rows, (0, rows, tiles, barriers, scale, work, strides, GROUP, KV_HEADS, CHUNK, HAS_LSE)),
            (_attend_rows, (1, rows, tiles, barriers, scale, work, strides, GROUP, KV_HEADS, CHUNK, HAS_LSE)),
            (_load_half, (0, pages, boxes, barriers, work, page_strides, GROUP, KV_HEADS, PAGE)),
            (_load_half, (1, pages, boxes, barriers, work, page_strides, GROUP, KV_HEADS, PAGE)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )
