"""Products of activations and weights, x @ w.T (+ bias), with what may follow in the same kernel.

Exact products give a row the same bits whatever the number of rows and whatever the other rows hold: every element is
one chain of sums along K (see matmul_kernels). Fast products take whichever kernel is fastest for their size.
"""

from collections.abc import Sequence

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo_kernels.activation import silu_mul
from octavo_kernels.arguments import FLOATS, check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv
from octavo_kernels.heuristics import INTERPRETER
from octavo_kernels.launch import hardware, launch_keyed
from octavo_kernels.matmul_kernels import _product_persistent, _product_tile
from octavo_kernels.matmul_tiles import ProductTile, form_sizes, product_parts


def matmul(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, exact: bool) -> None:
    """Write x @ w.T (+ bias), summed in fp32 and rounded once.

    Args:
        x: [M, K] fp32, fp16 or bf16; rows may be strided.
        w: [N, K] dtype of x, as Hugging Face stores it; rows may be strided.
        bias: [N] dtype of x, or None.
        out: [M, N] dtype of x, written.
        exact: a row's bits must not depend on M or on the other rows.
    """
    _check(x, w, bias, out, w.shape[0])
    parts = _parts(x, w, exact=exact, gated=False)
    if parts:
        _launch_parts(parts, x, w, bias, None, out, gated=False)
    else:
        _library_product(x, w, bias, out)


def matmul_add(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor, *, exact: bool
) -> None:
    """Add x @ w.T (+ bias) to the residual in place. If exact: bit by bit `matmul`, then an addition of rounded tensors.

    Args:
        x: [M, K] fp32, fp16 or bf16; rows may be strided.
        w: [N, K] dtype of x; rows may be strided.
        bias: [N] dtype of x, or None.
        residual: [M, N] dtype of x, becomes residual + product.
        exact: a row's bits must not depend on M or on the other rows.
    """
    _check(x, w, bias, residual, w.shape[0])
    parts = _parts(x, w, exact=exact, gated=False)
    if parts:
        _launch_parts(parts, x, w, bias, residual, residual, gated=False)
        return
    torch.addmm(residual, x, w.t(), out=residual)
    if bias is not None:
        residual += bias


def matmul_silu(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    gate_up: torch.Tensor | None,
    out: torch.Tensor,
    *,
    exact: bool,
) -> None:
    """Write silu(gate) * up of [gate | up] = x @ w.T (+ bias): bit by bit `matmul`, then `silu_mul`.

    Args:
        x: [M, K] fp32, fp16 or bf16; rows may be strided.
        w: [2 I, K] dtype of x, the gate's rows followed by those of the up projection; rows may be strided.
        bias: [2 I] dtype of x, or None.
        gate_up: [M, 2 I] dtype of x, overwritten where two kernels do it faster than one; None: one kernel always.
        out: [M, I] dtype of x, written.
        exact: a row's bits must not depend on M or on the other rows.
    """
    if w.ndim != 2 or w.shape[0] % 2 != 0:
        raise ValueError(f"w: shape {tuple(w.shape)}, expected [2 I, K]")
    _check(x, w, bias, out, w.shape[0] // 2)
    parts = _parts(x, w, exact=exact, gated=True)
    if parts:
        _launch_parts(parts, x, w, bias, None, out, gated=True)
        return
    if gate_up is None:
        gate_up = x.new_empty(x.shape[0], w.shape[0])
    _library_product(x, w, bias, gate_up)
    silu_mul(gate_up, out)


def sizes_of_all_forms(
    shapes: Sequence[tuple[int, int, bool]], dtype: torch.dtype, most_rows: int, device: torch.device, *, exact: bool
) -> list[int]:
    """Return numbers of rows, ascending, that between them need every kernel of these products.

    Args:
        shapes: (N, of both halves if gated; K; whether gated) of each weight.
        dtype: of weights and activations.
        most_rows: the largest M to come.
        device: where they run.
        exact: as they will be called.
    """
    arch, processors = hardware(device)
    return form_sizes(arch, dtype, most_rows, shapes, processors, exact=exact)


def launch_product(
    tile: ProductTile,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    gated: bool,
) -> None:
    """Compute a product with a given tile; arguments as of `matmul`, not checked. For tuning and tests."""
    num_rows, K = x.shape
    num_columns = out.shape[1]
    if num_rows == 0:
        return
    arch, processors = hardware(x.device)
    x_tma, w_tma = tile.x_tma and _has_descriptor(x), tile.w_tma and _has_descriptor(w)
    strides = (x.stride(0), w.stride(0), 0 if residual is None else residual.stride(0), out.stride(0))
    tensors = (out if bias is None else bias, out if residual is None else residual, out)
    flags = (x_tma, w_tma, K % tile.depth == 0, arch == INTERPRETER, bias is not None, gated, residual is not None)
    if tile.persistent:
        num_programs = form = processors
    else:
        num_programs = cdiv(num_rows, tile.rows) * cdiv(num_columns, tile.columns)
        form = tile.swapped
    prefetch = _prefetched(tile, K * w.element_size(), gated=gated) if w_tma else 0
    arguments = (
        _describe(x, x.shape, x.stride(), [tile.rows, tile.depth]) if x_tma else x,
        _describe_weight(w, tile, num_columns, gated=gated) if w_tma else w,
        *(() if tile.persistent else (w,)),
        *tensors,
        num_rows,
        num_columns,
        K,
        *strides,
        tile.rows,
        tile.columns,
        tile.depth,
        tile.group,
        form,
        *flags,
        *(() if tile.persistent else (tile.early, prefetch)),
    )
    kernel = _product_persistent if tile.persistent else _product_tile
    options = {"num_warps": tile.warps, "num_stages": tile.stages} | ({"launch_pdl": True} if tile.early else {})
    if arch == INTERPRETER:
        kernel[num_programs,](*arguments, **options)
        return
    # All that the kernel is specialized for; descriptors follow from it.
    alignment = tuple(tensor.data_ptr() % 16 for tensor in (x, w, *tensors))
    forms = (x.dtype, tile, num_columns, K, strides, flags, alignment)
    launch_keyed(forms, kernel, (num_programs,), arguments, options)


def _prefetched(tile: ProductTile, row_bytes: int, *, gated: bool) -> int:
    """Return the bytes of each row of w that its programs ask for early, each thread for 16 or more; 0 for none."""
    parts = max(1, 32 * tile.warps // (tile.columns * (1 + gated)))
    most = min(tile.prefetch, 1 << row_bytes.bit_length() - 1)  # a power of two that every row has
    return most if tile.early and most >= 16 * parts else 0


def _parts(x: torch.Tensor, w: torch.Tensor, *, exact: bool, gated: bool) -> tuple[tuple[int, ProductTile], ...]:
    arch, processors = hardware(x.device)
    return product_parts(arch, x.dtype, x.shape[0], w.shape[0], x.shape[1], processors, exact=exact, gated=gated)


def _launch_parts(
    parts: tuple[tuple[int, ProductTile], ...],
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor,
    *,
    gated: bool,
) -> None:
    if len(parts) == 1:
        launch_product(parts[0][1], x, w, bias, residual, out, gated=gated)
        return
    start = 0
    for count, tile in parts:
        rows = slice(start, start + count)
        launch_product(tile, x[rows], w, bias, None if residual is None else residual[rows], out[rows], gated=gated)
        start += count


def _library_product(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    if bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)


def _has_descriptor(x: torch.Tensor) -> bool:
    """Tell whether tensor memory access can read these rows: addresses must be multiples of 16 bytes."""
    size = x.element_size()
    return x.data_ptr() % 16 == 0 and x.stride(0) * size % 16 == 0 and x.shape[1] * size >= 16


def _describe_weight(w: torch.Tensor, tile: ProductTile, num_columns: int, *, gated: bool) -> TensorDescriptor:
    """Describe w; a gated one as [2, N, K], so that one load brings rows of both halves (unless swapped: two loads)."""
    if tile.swapped or not gated:
        return _describe(w, w.shape, w.stride(), [tile.columns, tile.depth])
    strides = (num_columns * w.stride(0), w.stride(0), 1)
    return _describe(w, (2, num_columns, w.shape[1]), strides, [2, tile.columns, tile.depth])


def _describe(base: torch.Tensor, shape: Sequence[int], strides: Sequence[int], block: list[int]) -> TensorDescriptor:
    """Make a descriptor without its constructor's checks, a fifth of a launch's time: `_has_descriptor` made them."""
    descriptor = TensorDescriptor.__new__(TensorDescriptor)
    descriptor.base, descriptor.shape, descriptor.strides = base, shape, strides
    descriptor.block_shape, descriptor.padding = block, "zero"
    return descriptor


def _check(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, num_columns: int) -> None:
    if x.ndim != 2 or w.ndim != 2:
        raise ValueError(f"x and w: {x.ndim} and {w.ndim} axes, expected [M, K] and [N, K]")
    if x.shape[1] == 0:
        raise ValueError("x: 0 columns, expected 1 or more")
    check_tensor("x", x, tuple(x.shape), FLOATS, x.device)
    check_tensor("w", w, (w.shape[0], x.shape[1]), x.dtype, x.device)
    check_tensor("out", out, (x.shape[0], num_columns), x.dtype, x.device)
    if bias is not None:
        check_vector("bias", bias, w.shape[0], x.dtype, x.device)
