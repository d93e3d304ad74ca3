"""Tests that run on a GPU where there is one, and say so where there is none."""

from __future__ import annotations

import pytest
import torch

NEEDS_GPU = (
    pytest.mark.gpu,
    pytest.mark.timeout(600),  # kernels are compiled at their first use
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: `make test-gpu`"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
