"""What every launcher does: check its arguments, see where the kernel will run, and launch it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import triton

from octavo_kernels.heuristics import INTERPRETER

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def cdiv(count: int, size: int) -> int:
    """Return count / size, rounded up. Triton's own function takes microseconds on the host: it serves kernels, too."""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is no less than a positive number; as above."""
    return 1 << (number - 1).bit_length()


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


def must_upcast(dtype: torch.dtype) -> bool:
    """Tell whether kernels must widen this type to fp32 on load: the interpreter gets bf16 arithmetic wrong."""
    return dtype == torch.bfloat16 and interpreted()


def check_tensor(
    name: str,
    x: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise ValueError unless `x` has this shape, one of these dtypes, this device and unit stride in the last axis."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(x.shape)}, expected {shape}")
    if x.dtype not in dtypes:
        raise ValueError(f"{name}: dtype {x.dtype}, expected {' or '.join(str(d) for d in dtypes)}")
    if x.device != device:
        raise ValueError(f"{name}: device {x.device}, expected {device}")
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: stride {x.stride(-1)} in the last axis, expected 1")


def check_vector(name: str, x: torch.Tensor, length: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless `x` is a contiguous vector of this length, dtype and device."""
    check_tensor(name, x, (length,), dtype, device)


def check_pages(k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype, device: torch.device, head_dim: int) -> None:
    """Raise ValueError unless `k` and `v` are views [P, Hk, PAGE, D] of one pool that the kernels can read."""
    if k.ndim != 4:
        raise ValueError(f"k: {k.ndim} axes, expected [P, Hk, PAGE, D]")
    check_tensor("k", k, (*k.shape[:3], head_dim), dtype, device)
    check_tensor("v", v, tuple(k.shape), dtype, device)
    if k.shape[2] not in {16, 32, 64}:
        raise ValueError(f"k: page size {k.shape[2]}, expected 16, 32 or 64")
    if head_dim % 16 != 0:
        raise ValueError(f"k: head dimension {head_dim}, expected a multiple of 16")
    if k.stride() != v.stride():
        raise ValueError(f"v: strides {v.stride()}, expected those of k, {k.stride()}")
    # Kernels promise the compiler that a token's address is a multiple of 16 elements; without it loads are narrow.
    if any(stride % 16 for stride in k.stride()[:3]):
        raise ValueError(f"k: strides {k.stride()}, expected multiples of 16 but for the last")


def check_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    sinks: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments that both attention launchers share fit together."""
    if q.ndim != 3:
        raise ValueError(f"q: {q.ndim} axes, expected [T, Hq, D]")
    rows, num_heads, head_dim = q.shape
    check_tensor("q", q, (rows, num_heads, head_dim), FLOATS, q.device)
    check_tensor("out", out, tuple(q.shape), q.dtype, q.device)
    check_pages(k, v, q.dtype, q.device, head_dim)
    if num_heads % k.shape[1] != 0:
        raise ValueError(f"q: {num_heads} heads, expected a multiple of the {k.shape[1]} heads of k")
    if block_table.ndim != 2:
        raise ValueError(f"block_table: {block_table.ndim} axes, expected [B, max_pages]")
    check_tensor("block_table", block_table, tuple(block_table.shape), torch.int32, q.device)
    check_vector("seq_lens", seq_lens, block_table.shape[0], torch.int32, q.device)
    if sinks is not None:
        check_vector("sinks", sinks, num_heads, torch.float32, q.device)
    if lse is not None:
        check_tensor("lse", lse, (rows, num_heads), torch.float32, q.device)
        if not lse.is_contiguous():
            raise ValueError(f"lse: strides {lse.stride()}, expected a contiguous tensor")


def check_options(scale: float, window: int, softcap: float) -> None:
    """Raise ValueError unless the attention options are in range."""
    if not scale > 0:
        raise ValueError(f"scale: {scale}, expected more than 0")
    if window < 0:
        raise ValueError(f"window: {window}, expected 0 (off) or more")
    if softcap < 0:
        raise ValueError(f"softcap: {softcap}, expected 0 (off) or more")
