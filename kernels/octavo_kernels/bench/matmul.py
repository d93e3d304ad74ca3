"""Benchmark of the matrix products beside the vendor's library: `python -m octavo_kernels.bench.matmul`."""

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch

from octavo_kernels.activation import silu_mul
from octavo_kernels.bench.timing import Row, ceilings, graph_us, print_table, rotated
from octavo_kernels.matmul import matmul, matmul_silu

_DTYPE = torch.bfloat16

# (N, K) of the products of a layer, and of the last one.
SHAPES = {
    "llama-8b": {
        "qkv": (6144, 4096),
        "o": (4096, 4096),
        "gate_up": (28672, 4096),
        "down": (4096, 14336),
        "lm_head": (128256, 4096),
    },
    "qwen3-0.6b": {
        "qkv": (4096, 1024),
        "o": (1024, 2048),
        "gate_up": (6144, 1024),
        "down": (1024, 3072),
        "lm_head": (151936, 1024),
    },
}
ROWS = (1, 8, 32, 64, 128, 256, 1024, 8192)
# Only sampled rows reach the last product.
_MOST_LM_HEAD_ROWS = 256

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], object]


def products(name: str) -> Iterator[tuple[str, Product]]:
    """Yield what is timed for a product of this name: functions of (x, w, out [M, N], half [M, N / 2])."""
    yield "exact", lambda x, w, out, _half: matmul(x, w, None, out, exact=True)
    yield "fast", lambda x, w, out, _half: matmul(x, w, None, out, exact=False)
    yield "library", lambda x, w, out, _half: torch.mm(x, w.t(), out=out)
    if name == "gate_up":
        yield "exact + silu", lambda x, w, out, half: matmul_silu(x, w, None, out, half, exact=True)
        yield "fast + silu", lambda x, w, out, half: matmul_silu(x, w, None, out, half, exact=False)
        yield "library + silu", _library_silu


def _library_silu(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, half: torch.Tensor) -> None:
    torch.mm(x, w.t(), out=out)
    silu_mul(out, half)


def measure(models: Sequence[str] = tuple(SHAPES), row_counts: Sequence[int] = ROWS) -> Iterator[Row]:
    """Time every product of these models for these numbers of rows."""
    for model in models:
        for name, (columns, depth) in SHAPES[model].items():
            for rows in row_counts:
                if name != "lm_head" or rows <= _MOST_LM_HEAD_ROWS:
                    yield from _measure_shape(f"{model} {name}", name, rows, columns, depth)


def _measure_shape(title: str, name: str, rows: int, columns: int, depth: int) -> Iterator[Row]:
    def random() -> tuple[torch.Tensor, ...]:
        x = torch.randn(rows, depth, device="cuda").to(_DTYPE)
        w = torch.empty(columns, depth, device="cuda", dtype=_DTYPE).normal_(std=0.02)
        return x, w, x.new_empty(rows, columns), x.new_empty(rows, columns // 2)

    inputs = rotated(random)
    for kind, product in products(name):
        stored = rows * columns // (2 if "silu" in kind else 1)
        yield Row(
            name=f"{title} M={rows} {kind}",
            us=graph_us(product, inputs=inputs),
            bytes=_DTYPE.itemsize * (rows * depth + columns * depth + stored),
            flops=2.0 * rows * columns * depth,
        )


def main() -> None:
    """Parse the command line, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=list(SHAPES), help="default: all")
    parser.add_argument("--rows", action="append", type=int, help=f"default: {', '.join(map(str, ROWS))}")
    options = parser.parse_args()
    measured = ceilings()
    print_table(list(measure(options.model or list(SHAPES), options.rows or ROWS)), measured)


if __name__ == "__main__":
    main()
