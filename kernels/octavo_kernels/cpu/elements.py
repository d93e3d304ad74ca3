"""Element types of the CPU kernels: float32, and bfloat16 as the uint16 that NumPy can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

# Reassociation lets LLVM use vectors for sums; the order is then fixed by the compiled code, never by the batch.
FAST = {"reassoc", "contract", "nsz", "arcp", "nnan", "ninf"}


def load(array: Any, index: Any) -> Any:
    """Return array[index] as float32; for compiled callers only."""
    raise NotImplementedError(array, index)


def store(array: Any, index: Any, value: Any) -> None:
    """Set array[index] to a float32, rounded to the array's type; for compiled callers only."""
    raise NotImplementedError(array, index, value)


# The element type is read off the array while a caller compiles. (A function handed in from outside would do as well,
# but would give the caller a new identity in each process, and so keep its compiled code out of the disk cache.)
@overload(load, inline="always")
def _load(array: Any, index: Any) -> Any:  # noqa: ARG001  # the signature is that of `load`
    return _load_bfloat16 if array.dtype == types.uint16 else _load_float32


@overload(store, inline="always")
def _store(array: Any, index: Any, value: Any) -> None:  # noqa: ARG001  # the signature is that of `store`
    return _store_bfloat16 if array.dtype == types.uint16 else _store_float32  # type: ignore[return-value]


def _load_float32(array: Any, index: Any) -> Any:
    return array[index]


def _load_bfloat16(array: Any, index: Any) -> Any:
    return np.uint32(np.uint32(array[index]) << np.uint32(16)).view(np.float32)


def _store_float32(array: Any, index: Any, value: Any) -> None:
    array[index] = value


def _store_bfloat16(array: Any, index: Any, value: Any) -> None:
    bits = np.float32(value).view(np.uint32)
    # Round to nearest even, as torch and the hardware do.
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    array[index] = np.uint16(rounded >> np.uint32(16))


@njit(inline="always", cache=True)
def exp2_parts(x: Any) -> Any:
    """Return (mantissa, exponent bits) of 2**x for x in [-126, 126]: 2**x = mantissa * view_float32(bits).

    The two parts stay apart so that loops over arrays vectorize: bits go to an int32 array that is viewed as float32.
    The polynomial of degree 5 on [0, 1) has a relative error below 3e-7.
    """
    floor = np.floor(x)
    f = x - floor
    p = np.float32(1.8775767e-3)
    p = p * f + np.float32(8.9893397e-3)
    p = p * f + np.float32(5.5826318e-2)
    p = p * f + np.float32(2.4015361e-1)
    p = p * f + np.float32(6.9315308e-1)
    p = p * f + np.float32(9.9999994e-1)
    return p, (np.int32(floor) + np.int32(127)) << np.int32(23)
