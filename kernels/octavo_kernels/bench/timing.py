"""What the kernel benchmarks share: time calls by graph replay, measure the device's ceilings, print one table.

A call is timed inside a captured graph, as an engine runs it: what Python needs to launch it is left out, what the
device needs between two kernels is in. Inputs rotate, so that what a call reads has left the L2 cache since its last use.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# More than twice the L2 cache of the largest devices in use (50 MB).
_ROTATED_BYTES = 128 * 2**20
# Small inputs stay in L2 in an engine too; more sets of them would only make the capture long.
_MAX_SETS = 64
_REPLAYS = 15
# A replay lasts a millisecond or more, so that the clock's resolution (about 1 us) does not count.
_REPLAY_US = 1000.0
_COPY_BYTES = 2**30
_GEMM_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches in this very run."""

    copy_bytes_s: float  # bytes read and written a second by a large copy
    gemm_flop_s: float  # of a large square bf16 product


@dataclass(frozen=True, slots=True)
class Row:
    """One measured call. `bytes` are those it must read and write once each, `flops` those it must compute."""

    name: str
    us: float
    bytes: float
    flops: float = 0.0

    def floor_us(self, ceilings: Ceilings) -> float:
        """Return the least time that the ceilings allow, in microseconds."""
        return 1e6 * max(self.bytes / ceilings.copy_bytes_s, self.flops / ceilings.gemm_flop_s)

    def fraction(self, ceilings: Ceilings) -> float:
        """Return the part of the roofline that was reached: 1 is the floor."""
        return self.floor_us(ceilings) / self.us


def graph_us(fn: Callable[..., object], *, inputs: Sequence[tuple[Any, ...]]) -> float:
    """Time fn(*inputs[i]), i going round, inside one captured graph.

    Args:
        fn: launches work on the current stream; captured, so it may not wait for the device.
        inputs: argument tuples, used in rotation; see `rotated`.

    Returns:
        Median microseconds a call, over the replays.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for arguments in inputs[:2]:  # compiles; the second set may be specialized otherwise
            fn(*arguments)
        torch.cuda.synchronize()
        once = _capture(fn, inputs, len(inputs))
        once.replay()
        rounds = max(1, round(_REPLAY_US / _replay_us(once)))
        graph = once if rounds == 1 else _capture(fn, inputs, rounds * len(inputs))
        graph.replay()
        times = [_replay_us(graph) for _ in range(_REPLAYS)]
    return statistics.median(times) / (rounds * len(inputs))


def _capture(fn: Callable[..., object], inputs: Sequence[tuple[Any, ...]], calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin()  # not torch.cuda.graph(): it collects garbage first, which takes longer than the capture
    try:
        for arguments in itertools.islice(itertools.cycle(inputs), calls):
            fn(*arguments)
    finally:
        graph.capture_end()
    return graph


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(1e3 * start.elapsed_time(stop))


def rotated(make: Callable[[], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Call `make` until its tensors outgrow the L2 cache together (64 times at most), for `graph_us`."""
    sets = [make()]
    size = sum(x.numel() * x.element_size() for x in sets[0] if isinstance(x, torch.Tensor))
    wanted = min(_MAX_SETS, -(-_ROTATED_BYTES // max(1, size)))
    sets += [make() for _ in range(wanted - 1)]
    return sets


def ceilings() -> Ceilings:
    """Measure the device's copy bandwidth and its bf16 GEMM rate; takes about a second and 2 GiB."""
    source, target = (torch.empty(_COPY_BYTES // 4, dtype=torch.int32, device="cuda").fill_(n) for n in (1, 2))
    # A copy node of a graph need not run on the multiprocessors: what a kernel reaches counts too.
    copy_us = min(
        graph_us(torch.Tensor.copy_, inputs=[(target, source)]),
        graph_us(lambda x, out: torch.bitwise_not(x, out=out), inputs=[(source, target)]),
    )
    del source, target
    # Random values: a product of zeros draws less power and so runs at higher clocks.
    a, b, c = (torch.randn(_GEMM_SIZE, _GEMM_SIZE, device="cuda").to(torch.bfloat16) for _ in range(3))
    gemm_us = graph_us(lambda x, y, out: torch.mm(x, y, out=out), inputs=[(a, b, c)])
    return Ceilings(copy_bytes_s=2e6 * _COPY_BYTES / copy_us, gemm_flop_s=2e6 * _GEMM_SIZE**3 / gemm_us)


def print_table(rows: Sequence[Row], ceilings: Ceilings) -> None:
    """Print one line a row: time, bandwidth, rate, and the fraction of the roofline."""
    width = max([len(row.name) for row in rows] + [4])
    lines = [
        f"ceilings: copy {ceilings.copy_bytes_s / 1e9:.0f} GB/s, bf16 GEMM {ceilings.gemm_flop_s / 1e12:.0f} TFLOP/s",
        f"{'call':{width}} {'us':>9} {'floor':>8} {'GB/s':>7} {'TFLOP/s':>8} {'roof':>6}",
    ]
    for row in rows:
        rate = f"{row.flops / row.us / 1e6:.1f}" if row.flops else "-"
        lines.append(
            f"{row.name:{width}} {row.us:9.2f} {row.floor_us(ceilings):8.2f} {row.bytes / row.us / 1e3:7.0f} {rate:>8} "
            f"{row.fraction(ceilings):6.1%}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
