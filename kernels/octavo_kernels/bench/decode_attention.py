"""Decode attention over batches and contexts: exact and fast, as a captured step launches it."""

from collections.abc import Iterator

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
from octavo_kernels.bench.peer_attention import peer_us
from octavo_kernels.bench.timing import Row, graph_us
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.heuristics import CHUNK, exact_span, fast_chunk

_SHAPES = ((1, 1024), (1, 4096), (1, 16384), (4, 1024), (16, 1024), (32, 1024), (64, 4096), (128, 1024), (256, 1024))


def measure() -> Iterator[Row]:
    """Time one layer's decode attention; the table is wide enough for a power of two of tokens, as in a captured step."""
    for batch, length in _SHAPES:
        inputs = paged_inputs([1] * batch, [length] * batch)
        for exact in (True, False):
            yield Row(
                name=f"decode B={batch} context={length} {'exact' if exact else 'fast'}",
                us=_decode_us(inputs, batch, exact=exact),
                bytes=inputs.bytes(batch * length),
                flops=inputs.flops,
            )
        for name, us in peer_us(batch, 1, length):
            yield Row(
                f"decode B={batch} context={length} {name}, no pages", us, inputs.bytes(batch * length), inputs.flops
            )
        del inputs
        torch.cuda.empty_cache()


def _decode_us(inputs: PagedInputs, batch: int, *, exact: bool) -> float:
    width = max(2048, 2 * inputs.block_table.shape[1] * 16)
    chunk = CHUNK if exact else fast_chunk(batch * KV_HEADS)
    table = torch.nn.functional.pad(inputs.block_table, (0, width // 16 - inputs.block_table.shape[1]))
    programs = batch * KV_HEADS
    tickets = torch.zeros(programs, dtype=torch.int32, device=table.device) if chunk > CHUNK else None
    options = {"scale": SCALE, "chunk": chunk, "exact": exact, "tickets": tickets}
    size = decode_workspace_size(batch, NUM_HEADS, HEAD_DIM, width, chunk)
    workspace = torch.empty(size, dtype=torch.float32, device=table.device)

    def call(layer: int) -> None:
        q, k, v, _ = inputs.layer(layer)
        span = exact_span(programs) if exact else 1
        paged_decode(q, k, v, table, inputs.seq_lens, inputs.out, workspace, span=span, **options)

    return graph_us(call, inputs=[(layer,) for layer in range(LAYERS)])
