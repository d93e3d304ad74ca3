"""The work list of a decode step: which chunks of which sequences there are to read, made on the device.

A CUDA graph fixes its grid when it is captured, for the longest context. With a work list the grid is a fixed number of
programs that take items in turn, so chunks that no sequence reaches cost nothing. One list serves all layers of a step
that have the same window. Sequences that start with the same pages can have those chunks read once for all of them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv, next_power_of_2
from octavo_kernels.launch import launch


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan:
    """Device memory of a work list for up to `max_batch` sequences; `plan_decode` writes it anew for each step.

    A shared tile is a set of sequences whose first `tile_shared` tokens lie in the same pages.
    """

    chunk: int  # tokens
    window: int  # of the layers that the list is for; 0: none
    programs: int  # size of the grid
    work: torch.Tensor  # [1 + items] int32: how many there are, then the items
    tickets: torch.Tensor | None  # [max_batch * Hk] int32, zero between launches: who is last merges
    members: torch.Tensor | None  # [tiles, M] int32 rows of the batch, -1 after the last
    tile_shared: torch.Tensor | None  # [tiles] int32 tokens, 0 for a tile without work
    row_shared: torch.Tensor | None  # [max_batch] int32 tokens that a shared tile reads for this row, 0 for none


def allocate_plan(
    *,
    max_batch: int,
    max_len: int,
    num_kv_heads: int,
    chunk: int,
    programs: int,
    device: torch.device,
    window: int = 0,
    shared_tiles: int = 0,
    members: int = 0,
) -> DecodePlan:
    """Reserve the device memory of a plan, with nothing shared.

    Args:
        max_batch: most sequences of a batch, at most 32767.
        max_len: most tokens of a sequence.
        num_kv_heads: key/value heads.
        chunk: tokens a chunk.
        programs: how many programs the decode kernel starts; a few for each multiprocessor.
        device: where the batch lives.
        window: newest tokens that a query sees; 0 means all.
        shared_tiles: most shared tiles of a step; 0 if prefixes are never shared.
        members: most sequences of a shared tile.
    """
    if window > 0 and shared_tiles > 0:
        raise ValueError(f"shared_tiles: {shared_tiles}, expected 0 with a window")

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=device)

    most_chunks = cdiv(max_len, chunk)
    return DecodePlan(
        chunk=chunk,
        window=window,
        programs=programs,
        work=zeros(1 + (max_batch + shared_tiles) * (most_chunks + 1)),
        tickets=None if shared_tiles else zeros(max_batch * num_kv_heads),
        members=zeros(shared_tiles, members) - 1 if shared_tiles else None,
        tile_shared=zeros(shared_tiles) if shared_tiles else None,
        row_shared=zeros(max_batch) if shared_tiles else None,
    )


def decode_programs(per_multiprocessor: int = 3) -> int:
    """Return a size of the grid that fills the current CUDA device."""
    return per_multiprocessor * torch.cuda.get_device_properties().multi_processor_count


def plan_decode(plan: DecodePlan, seq_lens: torch.Tensor) -> None:
    """Write the work list for sequences of these lengths, [B] int32. One small program, fit for a CUDA graph."""
    batch = seq_lens.shape[0]
    check_vector("seq_lens", seq_lens, batch, torch.int32, plan.work.device)
    tiles = 0 if plan.tile_shared is None else plan.tile_shared.shape[0]
    if batch == 0:
        plan.work[:1].zero_()
        return
    launch(
        _plan_decode,
        (1,),
        seq_lens,
        plan.row_shared,
        plan.tile_shared,
        plan.work,
        batch,
        tiles,
        CHUNK=plan.chunk,
        WINDOW=plan.window,
        SHARED=tiles > 0,
        LANES=_lanes(max(batch, tiles)),
        num_warps=4,
    )


def plan_sizes(most_rows: int) -> list[int]:
    """Return numbers of rows, ascending, whose plans between them need every form of the kernel of up to so many rows."""
    sizes = {_lanes(1)}
    while max(sizes) < most_rows:
        sizes.add(2 * max(sizes))
    return sorted(min(size, most_rows) for size in sizes)


def _lanes(rows: int) -> int:
    return max(16, next_power_of_2(rows))


def check_plan(plan: DecodePlan, batch: int, num_kv_heads: int, chunk: int, window: int, rows: int, group: int) -> None:
    """Raise ValueError unless the plan was made for such a launch."""
    if (plan.chunk, plan.window) != (chunk, window):
        raise ValueError(f"plan: chunk {plan.chunk}, window {plan.window}, expected {chunk} and {window}")
    if plan.tickets is not None and plan.tickets.numel() < batch * num_kv_heads:
        raise ValueError(f"plan: {plan.tickets.numel()} tickets, expected {batch * num_kv_heads}")
    if plan.members is not None:
        check_tensor("plan", plan.members, tuple(plan.members.shape), torch.int32, plan.work.device)
        if plan.members.shape[1] * group > rows:
            raise ValueError(f"plan: {plan.members.shape[1]} members of a tile, expected at most {rows // group}")


@triton.jit(do_not_specialize=["batch", "tiles"])
def _plan_decode(
    seq_lens_ptr,
    row_shared_ptr,
    tile_shared_ptr,
    work_ptr,
    batch,
    tiles,
    CHUNK: tl.constexpr,
    WINDOW: tl.constexpr,
    SHARED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Write the number of items, then shared chunks, whole chunks and last chunks: short ones come last.

    One program. An item is (sequence << 16) + chunk; shared tile t takes the place of a sequence as -1 - t.
    """
    lanes = tl.arange(0, LANES)
    length = tl.load(seq_lens_ptr + lanes, mask=lanes < batch, other=0)
    first = tl.zeros([LANES], tl.int32)
    if WINDOW > 0:
        first = tl.maximum(length - WINDOW, 0) // CHUNK
    place = 1
    if SHARED:
        first = tl.load(row_shared_ptr + lanes, mask=lanes < batch, other=0) // CHUNK
        shared = tl.load(tile_shared_ptr + lanes, mask=lanes < tiles, other=0) // CHUNK
        at = place + tl.cumsum(shared) - shared
        for chunk in tl.range(0, tl.max(shared)):
            tl.store(work_ptr + at + chunk, ((-1 - lanes) << 16) + chunk, mask=chunk < shared)
        place += tl.sum(shared)
    whole = tl.maximum(length // CHUNK - first, 0)
    at = place + tl.cumsum(whole) - whole
    for chunk in tl.range(0, tl.max(whole)):
        tl.store(work_ptr + at + chunk, (lanes << 16) + first + chunk, mask=chunk < whole)
    place += tl.sum(whole)
    # An empty sequence gets an item too: somebody has to write its zeros.
    last = (((length % CHUNK) > 0) | (length == 0)) & (lanes < batch)
    count = last.to(tl.int32)
    tl.store(work_ptr + place + tl.cumsum(count) - 1, (lanes << 16) + length // CHUNK, mask=last)
    tl.store(work_ptr, place - 1 + tl.sum(count))
