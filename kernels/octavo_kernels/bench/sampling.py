"""Sampling over the vocabularies of Llama 3 and Qwen 3: greedy, plain temperature, and each kind of truncation.

The floor is one read of the logits. Logits are normal with a standard deviation of 3 ("flat": 1, where half of the
vocabulary belongs to a nucleus; trained models are far more peaked).
"""

from collections.abc import Iterator

import torch

from octavo_kernels.bench.timing import Row, graph_us, rotated
from octavo_kernels.sampling import sample, sample_workspace_size

_SHAPES = ((1, 128_256), (64, 128_256), (256, 151_936))
# name: standard deviation, temperature, top_k, top_p, min_p
_KINDS = {
    "greedy": (3.0, 0.0, 0, 1.0, 0.0),
    "temperature": (3.0, 0.8, 0, 1.0, 0.0),
    "top_k 50": (3.0, 0.8, 50, 1.0, 0.0),
    "top_k 50, top_p 0.9": (3.0, 0.8, 50, 0.9, 0.0),
    "top_p 0.9": (3.0, 0.8, 0, 0.9, 0.0),
    "top_p 0.9, flat": (1.0, 0.8, 0, 0.9, 0.0),
    "min_p 0.05": (3.0, 0.8, 0, 1.0, 0.05),
}


def measure() -> Iterator[Row]:
    """Time every kind at every shape."""
    for batch, vocab_size in _SHAPES:
        for name, kind in _KINDS.items():
            us = _time(batch, vocab_size, *kind)
            yield Row(f"sample B{batch} V{vocab_size} {name}", us, 2 * batch * vocab_size)


def _time(
    batch: int, vocab_size: int, deviation: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> float:
    def column(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((batch,), value, dtype=dtype, device="cuda")

    def logits() -> tuple[torch.Tensor]:
        return ((torch.randn(batch, vocab_size, device="cuda") * deviation).to(torch.bfloat16),)

    parameters = (column(temperature), column(top_k, torch.int32), column(top_p), column(min_p))
    draws = (column(1, torch.int64), torch.arange(batch, device="cuda"))  # seeds, positions
    outs = (column(0, torch.int64), column(0.0))
    workspace = torch.empty(sample_workspace_size(batch, vocab_size), device="cuda")
    return graph_us(lambda x: sample(x, *parameters, *draws, *outs, workspace), inputs=rotated(logits))
