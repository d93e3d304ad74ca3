"""The CPU's paged kernels, compiled by Numba: each row is computed alone, so no result depends on the batch.

Factories fix the model's shape at compile time; element types are read off the arrays. Compiled code is cached on disk. All
take flat NumPy views of torch tensors, release the GIL, and work on a range of rows so that threads can share a
step. Specification: `octavo_kernels.reference`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba
from octavo.model_directory import cache_directory


def _keep_compiled_code() -> None:
    """Keep compiled code in the user's cache, apart for each version of these sources.

    Numba only notices changes of the file that defines a function, not of what it inlines from another one.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    directory = cache_directory() / "numba" / digest.hexdigest()[:16]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # a read-only cache: Numba looks for a place of its own
        return
    _config.CACHE_DIR = str(directory)


_config: Any = numba.config  # its settings are made at run time
if not _config.CACHE_DIR:  # NUMBA_CACHE_DIR decides where it is set
    _keep_compiled_code()
