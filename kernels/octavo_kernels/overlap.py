"""Programmatic dependent launch: a kernel is set up while the one before it in the stream still runs.

Between two small kernels of a captured step the device idles for about a microsecond; a decode step of a small model has
hundreds of them. A kernel launched early runs its first instructions before the previous one has ended. It may read
what no kernel of the step writes (weights), then must wait. Since every kernel waits before it ends, a kernel that has
waited for the previous one has waited for all before it.
"""

from functools import cache

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from octavo_kernels.launch import architecture, interpreted

_HOPPER = 90


@cache
def early_launch() -> dict[str, bool]:
    """Return the launch arguments of a kernel that calls `wait_for_previous`."""
    if interpreted() or architecture() < _HOPPER:
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}


@triton.jit
def wait_for_previous(EARLY: tl.constexpr) -> None:
    """Let the next kernel be set up, then wait until all earlier kernels have ended and their writes are visible."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
