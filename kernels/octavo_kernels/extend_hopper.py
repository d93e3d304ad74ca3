"""Extend attention on Hopper GPUs: tells where the Gluon kernel of `extend_hopper_kernels` is the better one, and launches it.

Its results have the bits of the Triton kernel, so which of the two runs may depend on the batch. (Unless a value is infinite
or not a number: here it may also reach earlier rows of its tile, with weight 0.)
"""

import torch
import triton

from octavo_kernels.arithmetic import cdiv
from octavo_kernels.launch import hardware, interpreted, launch_keyed

_HOPPER = 90  # its instructions are those of this architecture alone
_TYPES = (torch.float16, torch.bfloat16)
# Gluon's interface changes between releases of Triton: the kernel is written for these. With others Triton's serves.
_IS_KNOWN = triton.__version__.startswith("3.6.")

if _IS_KNOWN and not interpreted():
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from octavo_kernels.extend_hopper_kernels import BOX, HEAD_DIM, ROWS, _extend_items

    _SWIZZLED = gl.NVMMASharedLayout(128, 16, 2)


def fills_device(q: torch.Tensor) -> bool:
    """Tell whether queries are enough for most multiprocessors: one of them takes a whole program, with its 128 rows.

    Fewer are faster in the smaller tiles of the Triton kernel (measured on an H200: by a tenth where half were enough).
    """
    return q.shape[0] * q.shape[1] * 4 >= hardware(q.device)[1] * ROWS * 3


def supports(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_plain: bool) -> bool:
    """Tell whether `launch_hopper` can compute attention of these queries over these pages.

    Args:
        q: as of `paged_extend`.
        k: likewise.
        v: likewise.
        is_plain: causal, without window, softcap and sinks.
    """
    if not (_IS_KNOWN and is_plain) or interpreted() or hardware(q.device)[0] != _HOPPER:
        return False
    head_dim, group = q.shape[2], q.shape[1] // k.shape[1]
    if q.dtype not in _TYPES or head_dim != HEAD_DIM or group > ROWS:
        return False
    are_rows = k.stride(2) == head_dim and k.stride(0) % head_dim == 0 and k.stride(1) % head_dim == 0
    return are_rows and k.shape[0] > 0 and k.data_ptr() % 16 == 0 and v.data_ptr() % 16 == 0


def launch_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_table: torch.Tensor,
    cu_q: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    scale: float,
    max_q_len: int | None,
    chunk: int,
) -> None:
    """Attend; arguments as of `paged_extend`, checked there, but chunk: 0 if not exact."""
    num_tokens, num_heads, head_dim = q.shape
    num_pages, num_kv_heads, page_size, _ = k.shape
    batch = block_table.shape[0]
    group = num_heads // num_kv_heads
    block_tokens = ROWS // group
    num_blocks, per_sequence = num_tokens // block_tokens + batch, 0
    if max_q_len is not None and cdiv(max_q_len, block_tokens) * batch < num_blocks:
        per_sequence = cdiv(max_q_len, block_tokens)
        num_blocks = per_sequence * batch
    if num_blocks == 0:
        return
    num_items = num_blocks * num_kv_heads
    page_rows, head_rows = k.stride(0) // head_dim, k.stride(1) // head_dim
    num_rows = (num_pages - 1) * page_rows + (num_kv_heads - 1) * head_rows + page_size
    strides = (page_rows, head_rows, block_table.stride(0), q.stride(0), q.stride(1), out.stride(0), out.stride(1))
    constants = (group, num_kv_heads, page_size, chunk, lse is not None)
    tensors = (block_table, cu_q, seq_lens, out, out if lse is None else lse)
    arguments = (
        q,
        _describe(k, num_rows, head_dim, page_size),
        _describe(v, num_rows, head_dim, page_size),
        *tensors,
        float(scale),
        num_items,
        num_blocks,
        batch,
        per_sequence,
        *strides,
        *constants,
    )
    alignment = tuple(tensor.data_ptr() % 16 for tensor in (q, k, v, *tensors))
    _, processors = hardware(q.device)
    forms = (q.dtype, *alignment, *strides, *constants)
    launch_keyed(forms, _extend_items, (min(num_items, processors),), arguments, {"num_warps": 4})


def _describe(pages: torch.Tensor, num_rows: int, head_dim: int, page_size: int) -> "TensorDescriptor":
    """Describe pages as rows, of which a copy brings BOX elements of page_size; without the constructor's checks."""
    descriptor = TensorDescriptor.__new__(TensorDescriptor)
    descriptor.base, descriptor.shape, descriptor.strides = pages, [num_rows, head_dim], [head_dim, 1]
    descriptor.block_shape, descriptor.layout, descriptor.padding = [page_size, BOX], _SWIZZLED, "zero"
    return descriptor
