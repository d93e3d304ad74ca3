"""What the device itself reaches in this run: the ceilings that the floors of all workloads are computed from."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch

_READ_BYTES: Final = 1 << 30
# A card that is short of power slows down within a second of products.
_GEMM_SIZE: Final = 8192
_HEAT_S: Final = 1.5
_SUSTAINED_PRODUCTS: Final = 200
_CPU_BYTES: Final = 1 << 26
_CPU_GEMM_SIZE: Final = 512
_CPU_RUNS: Final = 5


def measure_ceilings() -> dict[str, Any]:
    """Return bytes per second of a large copy (read + written) and of a large read, and FLOP/s of a large product.

    On a GPU the product is of bfloat16 matrices of 8192 x 8192, timed in a burst, and again after more than a second of
    such products. On a CPU the figures are rough.
    """
    return _cuda() if torch.cuda.is_available() else _cpu()


def _cuda() -> dict[str, Any]:
    from octavo_kernels.bench import timing  # noqa: PLC0415  # needs a GPU

    measured = timing.ceilings()
    source = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device="cuda")
    total = torch.empty((), dtype=torch.float32, device="cuda")
    read_us = timing.graph_us(lambda: torch.sum(source, dim=0, out=total), inputs=[()])
    return {
        "card": torch.cuda.get_device_name(),
        "copy_bytes_s": measured.copy_bytes_s,
        "read_bytes_s": 1e6 * _READ_BYTES / read_us,
        "gemm_flop_s": measured.gemm_flop_s,
        "sustained_flop_s": _sustained_flop_s(),
    }


def _sustained_flop_s() -> float:
    a, b = (torch.randn(_GEMM_SIZE, _GEMM_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    started = time.perf_counter()
    while time.perf_counter() - started < _HEAT_S:
        torch.mm(a, b, out=out)
        torch.cuda.synchronize()
    began.record()
    for _ in range(_SUSTAINED_PRODUCTS):
        torch.mm(a, b, out=out)
    ended.record()
    torch.cuda.synchronize()
    seconds = began.elapsed_time(ended) / 1e3
    return float(2 * _GEMM_SIZE**3 * _SUSTAINED_PRODUCTS / seconds)


def _cpu() -> dict[str, Any]:
    source = torch.ones(_CPU_BYTES // 4)
    target = torch.empty_like(source)
    a, b = (torch.randn(_CPU_GEMM_SIZE, _CPU_GEMM_SIZE) for _ in range(2))
    return {
        "card": None,
        "copy_bytes_s": 2 * _CPU_BYTES / _median_s(lambda: target.copy_(source)),
        "read_bytes_s": _CPU_BYTES / _median_s(source.sum),
        "gemm_flop_s": 2 * _CPU_GEMM_SIZE**3 / _median_s(lambda: a @ b),
    }


def _median_s(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_CPU_RUNS + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
