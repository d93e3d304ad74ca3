"""How many pages the pool gets: what the configuration says, or what weights and computing leave of the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from octavo_engine.config import EngineConfig
from octavo_engine.models.config import ModelConfig, UnsupportedModel
from octavo_engine.models.weights import num_parameters

# Of a GPU's free memory for what is neither weight nor page: activations of the largest step, graphs, the sampler.
_GPU_REST_SHARE: Final = 0.1
_GPU_REST_LEAST: Final = 2 << 30
# Of a machine's free memory, on a CPU: a laptop is not a server.
_CPU_SHARE: Final = 0.1
_CPU_MOST: Final = 1 << 30
# A pool holds one sequence of the longest kind, but need not hold more than so many pages for it.
_LEAST_PAGES: Final = 64


def pages_of_pool(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_len: int,
    workspace: Callable[[int], int],
) -> int:
    """Return the number of pages; call before weights are loaded.

    Args:
        config: its `num_pages` or `kv_memory` decides, if given.
        model: the model's shape.
        dtype: of weights and pages.
        device: where both are.
        max_len: most tokens of a sequence.
        workspace: bytes that operations keep for themselves on a GPU if sequences have at most so many tokens.

    Raises:
        UnsupportedModel: a GPU has no room for the weights and a few pages.
    """
    if config.num_pages is not None:
        return config.num_pages
    page_bytes = model.num_layers * 2 * model.num_kv_heads * config.page_size * model.head_dim * dtype.itemsize
    least = min(-(-max_len // config.page_size), _LEAST_PAGES) + 1
    if config.kv_memory is not None:
        return max(int(config.kv_memory) // page_bytes, least)
    if device.type != "cuda":
        return max(min(int(_free_bytes() * _CPU_SHARE), _CPU_MOST) // page_bytes, least)
    free, _ = torch.cuda.mem_get_info(device)
    weights = num_parameters(model) * dtype.itemsize
    room = free - weights - max(int(free * _GPU_REST_SHARE), _GPU_REST_LEAST)
    longest = min(max_len, room // page_bytes * config.page_size)  # a sequence cannot outgrow the pool
    num_pages = (room - workspace(longest)) // page_bytes if longest > 0 else 0
    if num_pages < least:
        raise UnsupportedModel(
            f"the weights take {weights / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free: too little for pages "
            "and computing besides. --kv-memory tries it with a pool of that size"
        )
    return num_pages


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 << 30
