"""Launching a kernel, and seeing where it will run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
import triton

from octavo_kernels.heuristics import INTERPRETER

# Kernels by what they are specialized for: as many as a model has kinds of launches, times widths of block tables.
_compiled: dict[tuple[Any, ...], Any] = {}
# Where this context launches nothing: what would have been launched. None: launches are launches.
_left_out: ContextVar[set[tuple[Any, ...]] | None] = ContextVar("left_out", default=None)


@contextmanager
def without_launches() -> Iterator[None]:
    """Launch nothing inside the block: a kernel that is not compiled yet is compiled there, or left to Triton's hooks.

    What kernels would have written there is undefined. Other threads are not concerned.
    """
    token = _left_out.set(set())
    try:
        yield
    finally:
        _left_out.reset(token)


def leaves_out() -> bool:
    """Tell whether this context is inside of `without_launches`."""
    return _left_out.get() is not None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
    """Launch a kernel. Does what `kernel[grid](*args, **named)` does, in half the time once the kernel is compiled.

    Triton needs longer to find a compiled kernel by its arguments than to launch it; here the key is only what it may be
    specialized for: types, alignments, and the values of integers (unless they are declared not to matter) and of
    what is named.

    Args:
        kernel: made by `triton.jit`, which need not be interpreted.
        grid: programs along each of up to three axes.
        args: tensors, integers, floats and None, in the order of the kernel's first parameters.
        named: its other parameters, all known at compile time, and options of the launch, always in the same order.
    """
    if not isinstance(kernel, triton.JITFunction):  # interpreted
        kernel[grid](*args, **named)
        return
    by_value, constants = _signatures.get(id(kernel)) or _read_signature(kernel, len(args))
    forms: list[Any] = []
    for arg, value_matters in zip(args, by_value, strict=True):
        if isinstance(arg, torch.Tensor):
            forms.append(arg.dtype)
            forms.append(arg.data_ptr() % 16)
        elif arg is None or isinstance(arg, float):
            forms.append(type(arg))
        else:
            forms.append(arg if value_matters else None)
    launch_keyed((*forms, *named.values()), kernel, grid, args, named, constants)


def launch_keyed(
    forms: tuple[Any, ...],
    kernel: Any,
    grid: tuple[int, ...],
    args: tuple[Any, ...],
    named: dict[str, Any],
    constants: Sequence[str] = (),
) -> None:
    """Launch a kernel that is found by a given key.

    Args:
        forms: what the kernel is specialized for: the same only for what Triton compiles to the same.
        kernel: made by `triton.jit` and not interpreted.
        grid: as of `launch`.
        args: likewise.
        named: likewise.
        constants: which of `named` are parameters of the kernel, in its order; the others are options of the launch.
    """
    key = (id(kernel), triton.runtime.driver.active.get_current_device(), *forms)
    compiled = _compiled.get(key)
    left_out = _left_out.get()
    if left_out is not None:
        if compiled is None and key not in left_out:
            kernel.warmup(*args, grid=grid, **named)
            left_out.add(key)
    elif compiled is None:
        _compiled[key] = kernel[grid](*args, **named)
    else:
        compiled[(*grid, 1, 1)](*args, *[named[name] for name in constants])


# Of each kernel: whether the value of each argument matters, and the names of the other parameters.
_signatures: dict[int, tuple[list[bool], list[str]]] = {}


def _read_signature(kernel: Any, num_args: int) -> tuple[list[bool], list[str]]:
    by_value = [not parameter.do_not_specialize for parameter in kernel.params[:num_args]]
    signature = _signatures[id(kernel)] = by_value, kernel.arg_names[num_args:]
    return signature


def interpreted() -> bool:
    """Tell whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 when they were defined)."""
    return bool(triton.knobs.runtime.interpret)


def architecture() -> int:
    """Return the compute capability that kernels are compiled for, such as 90; INTERPRETER if they are not compiled."""
    return INTERPRETER if interpreted() else int(triton.runtime.driver.active.get_current_target().arch)


@lru_cache(maxsize=64)
def hardware(device: torch.device) -> tuple[int, int]:
    """Return a device's compute capability (or INTERPRETER) and its number of multiprocessors."""
    arch = architecture()
    if arch == INTERPRETER:
        return arch, 2  # a few tiles for each program
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return arch, int(properties["multiprocessor_count"])


def must_upcast(dtype: torch.dtype) -> bool:
    """Tell whether kernels must widen this type to fp32 on load: the interpreter gets bf16 arithmetic wrong."""
    return dtype == torch.bfloat16 and interpreted()
