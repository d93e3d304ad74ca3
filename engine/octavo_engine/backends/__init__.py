"""The two backends: `torch` (CPU) and `triton` (CUDA, or the Triton interpreter in tests), behind one interface."""
