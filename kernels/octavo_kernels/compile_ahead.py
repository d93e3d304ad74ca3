"""Compiling many kernels side by side: left to itself, Triton compiles each at its first launch, which waits for it.

Most of the work runs outside Python's lock or in processes of its own, so threads suffice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import triton

from octavo_kernels.launch import without_launches

_MOST_THREADS: Final = 16


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """Launch nothing inside the block; at its end compile and load, side by side, what would have been compiled there.

    What kernels would have written is undefined there: the block may compute with it, but must not decide by it.
    """
    missing: dict[tuple[Any, str], None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002 - Triton names it
        missing[fn.jit_function, compile["specialization_data"]] = None
        return True  # not compiled now

    settings = triton.knobs.runtime
    before, settings.jit_cache_hook = settings.jit_cache_hook, note
    try:
        with without_launches():
            yield
    finally:
        settings.jit_cache_hook = before
    driver = triton.runtime.driver.active
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(threads, "compile", driver.set_current_device, (driver.get_current_device(),)) as pool:
        with triton.AsyncCompileMode(pool):
            compiling = [function.preload(specialization) for function, specialization in missing]
        list(pool.map(_load, compiling))


def _load(compiling: Any) -> None:
    """Build a compiled kernel's launcher, with a C compiler, and bring the kernel to the device."""
    _ = compiling.result().run
