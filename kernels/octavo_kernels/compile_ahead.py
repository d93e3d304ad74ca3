"""Compiling many kernels side by side: left to itself, Triton compiles each at its first launch, which waits for it.

Much of the work runs outside Python's lock or in processes of its own, so threads suffice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Final

import triton

from octavo_kernels.launch import leaves_out, without_launches

_MOST_THREADS: Final = 16


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """Launch no kernel of ours inside the block; at its end compile and load, side by side, what it would have compiled.

    What these kernels would have written is undefined there. Torch's own run on it: the block must not decide by it, nor
    index with it. Other threads launch and compile as always.
    """
    missing: dict[tuple[Any, str], None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002 - Triton names it
        if leaves_out():
            missing[fn.jit_function, compile["specialization_data"]] = None
            return True  # not compiled now
        return False

    settings = triton.knobs.runtime
    before, settings.jit_cache_hook = settings.jit_cache_hook, note
    try:
        with without_launches():
            yield
    finally:
        settings.jit_cache_hook = before
    driver = triton.runtime.driver.active
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    pool = ThreadPoolExecutor(threads, "compile", driver.set_current_device, (driver.get_current_device(),))
    try:
        # In a context of its own: one that an exception ends would stay in Triton's mode.
        compiling = copy_context().run(_compile, pool, list(missing))
        list(pool.map(_load, compiling))
    finally:
        pool.shutdown(cancel_futures=True)


def _compile(pool: Executor, missing: list[tuple[Any, str]]) -> list[Any]:
    with triton.AsyncCompileMode(pool):
        return [function.preload(specialization) for function, specialization in missing]


def _load(compiling: Any) -> None:
    """Build a compiled kernel's launcher, with a C compiler, and bring the kernel to the device."""
    _ = compiling.result().run
