"""Whether kernels were compiled before: the time of a start means little without it."""

from __future__ import annotations

import os
from pathlib import Path


def kernel_cache_state() -> str:
    """Return "filled" if Triton's cache of compiled kernels holds anything, else "empty"."""
    home = os.environ.get("TRITON_HOME", "~")
    directory = Path(os.environ.get("TRITON_CACHE_DIR") or Path(home) / ".triton" / "cache").expanduser()
    return "filled" if directory.is_dir() and any(directory.iterdir()) else "empty"
