"""Compiling many kernels side by side: left to itself, Triton compiles each at its first launch, which waits for it.

Much of the work runs outside Python's lock or in processes of its own, so threads suffice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import triton

from octavo_kernels.launch import leaves_out, without_launches

_MOST_THREADS: Final = 16

_Missing = dict[tuple[Any, str], None]  # kernels and what they are specialized for, in the order of their launches


class Compiling:
    """Kernels that threads are compiling and loading. One that is launched before its turn has come is compiled there."""

    def __init__(self, missing: _Missing) -> None:
        driver = triton.runtime.driver.active
        threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
        self._pool = ThreadPoolExecutor(threads, "compile", driver.set_current_device, (driver.get_current_device(),))
        # In a context of its own, which stays in Triton's mode: to leave it is to wait for all.
        try:
            self._kernels = copy_context().run(_submit, _Loader(self._pool), list(missing))
        except BaseException:
            self.close()
            raise

    def result(self, count: int | None = None) -> None:
        """Wait for the first so many kernels, or for all.

        Raises:
            Exception: what the compiler raised.
        """
        for kernel in self._kernels[:count]:
            kernel.result()

    def ends_within(self, seconds: float) -> bool:
        """Wait at most so long; tell whether all has come to an end, well or not."""
        return not wait([kernel.future for kernel in self._kernels], seconds).not_done

    def close(self) -> None:
        """Begin no further kernel, and wait for those that have begun."""
        self._pool.shutdown(cancel_futures=True)


def compile_ahead(first: Callable[[], None], others: Callable[[], None] = lambda: None) -> Compiling:
    """Return when all that `first` would compile is ready, while what `others` would compile is still on its way.

    Both are run, but launch no kernel of ours. What their kernels would have written is undefined. Torch's own run on it: they
    must not decide by it, nor index with it. Other threads launch and compile as always.

    Args:
        first: launches what is needed first.
        others: launches what is needed later; runs after it.

    Raises:
        Exception: what the compiler raised about `first`.
    """
    with _noting() as missing:
        first()
        count = len(missing)
        others()
    compiling = Compiling(missing)
    try:
        compiling.result(count)
    except BaseException:
        compiling.close()
        raise
    return compiling


@contextmanager
def _noting() -> Iterator[_Missing]:
    missing: _Missing = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002 - Triton names it
        if leaves_out():
            missing[fn.jit_function, compile["specialization_data"]] = None
            return True  # not compiled now
        return False

    settings = triton.knobs.runtime
    before, settings.jit_cache_hook = settings.jit_cache_hook, note
    try:
        with without_launches():
            yield missing
    finally:
        settings.jit_cache_hook = before


class _Loader(Executor):
    """Runs what compiles a kernel, and loads it in the same turn: its launcher takes a C compiler."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def submit(self, compiled: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        return self._pool.submit(_loaded, compiled)


def _loaded(compiled: Callable[[], Any]) -> Any:
    kernel = compiled()
    _ = kernel.run
    return kernel


def _submit(loader: Executor, missing: list[tuple[Any, str]]) -> list[Any]:
    ExitStack().enter_context(triton.AsyncCompileMode(loader))
    kernels = [function.preload(specialization) for function, specialization in missing]
    for kernel in kernels:
        kernel.future.add_done_callback(partial(_publish, kernel))
    return kernels


def _publish(kernel: Any, _: Future[Any]) -> None:
    """Put a compiled kernel where launches find it."""
    kernel.result(ignore_errors=True)
