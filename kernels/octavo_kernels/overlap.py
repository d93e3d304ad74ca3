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


@triton.jit
def prefetch_rows(ptr, rows, stride, ROWS: tl.constexpr, BYTES: tl.constexpr, PARTS: tl.constexpr) -> None:
    """Ask for the first BYTES of each of the rows [ROWS] to be brought into the L2 cache, and do not wait for them.

    Meant for what no kernel of the step writes, before `wait_for_previous`: memory is read while the kernel before ends.

    Args:
        ptr: of the matrix; rows start at multiples of 16 bytes.
        rows: [ROWS] indices that exist.
        stride: elements between rows.
        ROWS: how many.
        BYTES: of each row, a multiple of 16 * PARTS; a row has as many.
        PARTS: requests a row; with ROWS * PARTS = 32 * warps each thread makes one.
    """
    part = tl.arange(0, PARTS) * (BYTES // PARTS // (ptr.dtype.element_ty.primitive_bitwidth // 8))
    addresses = ptr + rows.to(tl.int64)[:, None] * stride + part[None, :]
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r",
        [addresses, tl.full([ROWS, PARTS], BYTES // PARTS, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
