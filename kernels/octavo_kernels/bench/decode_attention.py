"""Decode attention over batches and contexts: exact and fast, with the work list that a CUDA graph needs."""

from collections.abc import Iterator
from functools import partial

import torch

from octavo_kernels.bench.attention_inputs import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    NUM_HEADS,
    SCALE,
    PagedInputs,
    paged_inputs,
)
from octavo_kernels.bench.timing import Row, graph_us
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.decode_plan import allocate_plan, decode_programs, plan_decode
from octavo_kernels.heuristics import CHUNK, fast_chunk

_SHAPES = ((1, 1024), (1, 4096), (1, 16384), (4, 1024), (16, 1024), (32, 1024), (64, 4096), (128, 1024), (256, 1024))


def measure() -> Iterator[Row]:
    """Time one layer's decode attention; the table is wide enough for 16k tokens, as in a captured graph."""
    for batch, length in _SHAPES:
        inputs = paged_inputs([1] * batch, [length] * batch)
        for exact in (True, False):
            yield Row(
                name=f"decode B={batch} context={length} {'exact' if exact else 'fast'}",
                us=_decode_us(inputs, batch, exact=exact),
                bytes=inputs.bytes(batch * length),
                flops=inputs.flops,
            )
        del inputs
        torch.cuda.empty_cache()


def _decode_us(inputs: PagedInputs, batch: int, *, exact: bool) -> float:
    width = 16384 + 16
    chunk = CHUNK if exact else fast_chunk(batch)
    table = torch.nn.functional.pad(inputs.block_table, (0, width // 16 - inputs.block_table.shape[1]))
    plan = allocate_plan(
        max_batch=batch,
        max_len=width,
        num_kv_heads=KV_HEADS,
        chunk=chunk,
        programs=decode_programs(),
        device=table.device,
    )
    plan_decode(plan, inputs.seq_lens)
    size = decode_workspace_size(batch, NUM_HEADS, HEAD_DIM, width, chunk)
    workspace = torch.empty(size, dtype=torch.float32, device=table.device)

    def call(layer: int) -> None:
        q, k, v, _ = inputs.layer(layer)
        decode = partial(paged_decode, scale=SCALE, chunk=chunk, exact=exact, plan=plan)
        decode(q, k, v, table, inputs.seq_lens, inputs.out, workspace)

    return graph_us(call, inputs=[(layer,) for layer in range(LAYERS)])
