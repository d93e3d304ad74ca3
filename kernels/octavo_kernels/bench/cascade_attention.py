"""Decode attention of sequences with common prefixes: 16 groups of 16, 2048 tokens shared and 160 of their own."""

from collections.abc import Iterator

import torch

from octavo_kernels.bench.attention_inputs import HEAD_DIM, KV_HEADS, LAYERS, NUM_HEADS, PAGE, SCALE, paged_inputs
from octavo_kernels.bench.timing import Row, graph_us
from octavo_kernels.cascade import find_shared, set_shared
from octavo_kernels.decode_attention import decode_workspace_size, most_members, paged_decode
from octavo_kernels.decode_plan import DecodePlan, allocate_plan, decode_programs, plan_decode
from octavo_kernels.heuristics import CHUNK

_GROUPS, _MEMBERS, _SHARED, _OWN = 16, 16, 2048, 160


def measure() -> Iterator[Row]:
    """Time one layer with and without sharing; both give the same bits."""
    batch, length = _GROUPS * _MEMBERS, _SHARED + _OWN
    inputs = paged_inputs([1] * batch, [length] * batch, shared=_SHARED, group=_MEMBERS)
    device = inputs.q.device
    width = inputs.block_table.shape[1] * PAGE
    size = decode_workspace_size(batch, NUM_HEADS, HEAD_DIM, width)
    workspace = torch.empty(size, dtype=torch.float32, device=device)
    limits = {"max_batch": batch, "max_len": width, "num_kv_heads": KV_HEADS, "chunk": CHUNK}

    def call(layer: int, plan: DecodePlan) -> None:
        paged_decode(*inputs.layer(layer), inputs.seq_lens, inputs.out, workspace, scale=SCALE, exact=True, plan=plan)

    members = most_members(HEAD_DIM, NUM_HEADS // KV_HEADS, inputs.q.dtype, PAGE)
    for name, tiles in (("each on its own", 0), ("shared once", _GROUPS)):
        plan = allocate_plan(
            **limits, programs=decode_programs(), device=device, shared_tiles=tiles, members=members if tiles else 0
        )
        if tiles:
            tables, lengths = inputs.block_table.tolist(), inputs.seq_lens.tolist()
            set_shared(plan, find_shared(tables, lengths, page_size=PAGE, chunk=CHUNK, members=members))
        plan_decode(plan, inputs.seq_lens)
        yield Row(
            name=f"decode {_GROUPS} x {_MEMBERS}, {_SHARED} shared + {_OWN}: {name}",
            us=graph_us(call, inputs=[(layer, plan) for layer in range(LAYERS)]),
            bytes=inputs.bytes(_GROUPS * _SHARED + batch * _OWN),
            flops=inputs.flops,
        )
