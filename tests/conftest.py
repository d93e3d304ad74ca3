"""What every test needs before anything else is imported."""

from __future__ import annotations

import os

# Triton decides when a kernel is defined whether it is interpreted; without a GPU that must be decided first of all.
if "TRITON_INTERPRET" not in os.environ and not os.path.exists("/dev/nvidia0"):  # noqa: PTH110
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
