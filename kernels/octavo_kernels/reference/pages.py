"""Whole pages moved: inside the pool, to a contiguous buffer, and back."""

import torch


def copy_pages(kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy whole pages inside the pool.

    Args:
        kv: [P, L, 2, Hk, PAGE, D], the pool (any shape that starts with P).
        src: [N] int32 page ids; -1 skips the entry.
        dst: [N] int32 page ids, all different and none of them a source.
    """
    wanted = src >= 0
    kv[dst[wanted].long()] = kv[src[wanted].long()]


def gather_pages(kv: torch.Tensor, page_ids: torch.Tensor, staging: torch.Tensor) -> None:
    """Copy pages of the pool to a contiguous buffer.

    Args:
        kv: [P, ...], the pool.
        page_ids: [N] int32; -1 leaves its entry of `staging` untouched.
        staging: [N, ...], written.
    """
    wanted = page_ids >= 0
    staging[wanted] = kv[page_ids[wanted].long()]


def scatter_pages(staging: torch.Tensor, page_ids: torch.Tensor, kv: torch.Tensor) -> None:
    """Copy a contiguous buffer back to pages of the pool.

    Args:
        staging: [N, ...].
        page_ids: [N] int32, all different; -1 skips the entry.
        kv: [P, ...], the pool, written.
    """
    wanted = page_ids >= 0
    kv[page_ids[wanted].long()] = staging[wanted]
