"""Benchmarks of the kernels on a CUDA device: `python -m octavo_kernels.bench`."""
