"""Extend attention: chunks over cached prefixes and whole prompts, exact and fast."""

from collections.abc import Iterator

import torch

from octavo_kernels.bench.attention_inputs import LAYERS, SCALE, PagedInputs, paged_inputs
from octavo_kernels.bench.peer_attention import peer_us
from octavo_kernels.bench.timing import Row, graph_us
from octavo_kernels.extend_attention import paged_extend

# Sequences, query tokens of each, cached tokens of each.
_SHAPES = ((1, 512, 16384), (1, 2048, 16384), (8, 512, 2048), (2, 4096, 0), (64, 128, 2048))


def measure() -> Iterator[Row]:
    """Time one layer's extend attention."""
    for sequences, q_len, cached in _SHAPES:
        inputs = paged_inputs([q_len] * sequences, [cached + q_len] * sequences)
        for exact in (True, False):
            yield Row(
                name=f"extend {sequences} x {q_len} over {cached} {'exact' if exact else 'fast'}",
                us=_extend_us(inputs, q_len, exact=exact),
                bytes=inputs.bytes(sequences * (cached + q_len)),
                flops=inputs.flops,
            )
        if cached == 0:
            for name, us in peer_us(sequences, q_len, q_len):
                yield Row(
                    f"extend {sequences} x {q_len} {name}, no pages", us, inputs.bytes(sequences * q_len), inputs.flops
                )
        del inputs
        torch.cuda.empty_cache()


def _extend_us(inputs: PagedInputs, q_len: int, *, exact: bool) -> float:
    def call(layer: int) -> None:
        paged_extend(
            *inputs.layer(layer), inputs.cu_q, inputs.seq_lens, inputs.out, scale=SCALE, exact=exact, max_q_len=q_len
        )

    return graph_us(call, inputs=[(layer,) for layer in range(LAYERS)])
