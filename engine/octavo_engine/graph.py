"""Capturing what is queued on a stream as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def captured(compute: Callable[[], _T], pool: Any) -> tuple[torch.cuda.CUDAGraph, _T]:
    """Capture what a function queues on the current stream; return the graph, and what the function returned.

    Args:
        compute: has run before: what it needs is compiled, and does not fail in the midst of a capture.
        pool: where its temporary tensors come from; graphs that are never replayed at once may share one.
    """
    torch.cuda.current_stream().synchronize()
    graph = torch.cuda.CUDAGraph()
    collects = gc.isenabled()
    gc.disable()  # another graph that is collected in the midst of this one's capture would end it
    try:
        # Other threads may load kernels meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        result = compute()
    except BaseException:
        with suppress(RuntimeError):  # the capture is broken, too; what broke it says more
            graph.capture_end()
        raise
    else:
        graph.capture_end()
    finally:
        if collects:
            gc.enable()
    return graph, result
