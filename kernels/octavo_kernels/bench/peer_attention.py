"""Attention of torch's libraries where they do the same job: whole prompts, or one query a sequence, without pages.

Keys and values lie together there, which is easier to read fast than pages: their times say what pages cost.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from octavo_kernels.bench.attention_inputs import HEAD_DIM, KV_HEADS, LAYERS, NUM_HEADS, SCALE
from octavo_kernels.bench.timing import graph_us

_BACKENDS = {"FlashAttention": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def peer_us(sequences: int, q_len: int, length: int) -> Iterator[tuple[str, float]]:
    """Time each library that takes the shape: the newest q_len of `length` tokens are queries; all of them, or one.

    Yields:
        Its name and the median microseconds of one layer.
    """

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(sequences, heads, tokens, HEAD_DIM, device="cuda").to(torch.bfloat16)

    # As many layers as the paged benchmarks take in turn.
    inputs = [(random(NUM_HEADS, q_len), random(KV_HEADS, length), random(KV_HEADS, length)) for _ in range(LAYERS)]
    is_causal = q_len == length
    for name, backend in _BACKENDS.items():

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: SDPBackend = backend) -> object:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True, scale=SCALE)

        yield from _timed(name, call, inputs)
    if is_causal:
        yield from _timed("FlexAttention", _flex(sequences, length), inputs)


def _timed(name: str, call: Callable[..., object], inputs: list[tuple[Any, ...]]) -> Iterator[tuple[str, float]]:
    try:
        yield name, graph_us(call, inputs=inputs)
    except RuntimeError as error:  # the library does not take this shape, or is not there
        print(f"{name}: {str(error).splitlines()[0][:100]}")  # noqa: T201 - a benchmark's word to its reader
        torch.cuda.synchronize()


def _flex(sequences: int, length: int) -> Callable[..., object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: PLC0415 - slow to import

    def causal(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query >= key

    mask = create_block_mask(causal, sequences, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, scale=SCALE, enable_gqa=True)
