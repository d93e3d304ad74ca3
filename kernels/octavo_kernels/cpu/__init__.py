"""The CPU's paged kernels, compiled by Numba: each row is computed alone, so no result depends on the batch.

Every function comes from a factory that fixes shapes and element type at compile time; compiled code is cached on disk.
They take flat NumPy views of torch tensors, release the GIL, and work on a range of rows so that threads can share a
step. Specification: `octavo_kernels.reference`.
"""
