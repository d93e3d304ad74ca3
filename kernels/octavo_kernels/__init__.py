"""Triton kernels for paged serving, each beside its plain-PyTorch reference."""
