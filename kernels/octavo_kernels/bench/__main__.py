"""Run kernel benchmarks: `python -m octavo_kernels.bench [NAME ...]`, all by default.

A benchmark is a module beside this one with a function `measure() -> Iterable[Row]`; its name is the module's.
"""

import argparse
import importlib
import pkgutil

import torch

from octavo_kernels import bench
from octavo_kernels.bench.timing import ceilings, print_table

_NOT_BENCHMARKS = {"__main__", "attention_inputs", "peer_attention", "timing"}


def main() -> None:
    """Parse the command line, measure the ceilings once, print one table a benchmark."""
    names = sorted({module.name for module in pkgutil.iter_modules(bench.__path__)} - _NOT_BENCHMARKS)
    parser = argparse.ArgumentParser(prog="python -m octavo_kernels.bench", description="Time the kernels on a GPU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; all by default")
    wanted = parser.parse_args().names or names
    if unknown := set(wanted) - set(names):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not torch.cuda.is_available():
        parser.error("no CUDA device: these benchmarks time kernels on a GPU")
    limits = ceilings()
    for name in wanted:
        print_table(list(importlib.import_module(f"{bench.__name__}.{name}").measure()), limits)


if __name__ == "__main__":
    main()
