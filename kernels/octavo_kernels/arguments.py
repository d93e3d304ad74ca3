"""What every launcher checks before a launch."""

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


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
