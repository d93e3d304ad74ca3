"""Move whole pages: inside the pool (copy-on-write), to a contiguous buffer, and back.

The pool is page-major, [P, L, 2, Hk, PAGE, D], so a page is one contiguous run for all layers.
"""

import torch
import triton
import triton.language as tl

from octavo_kernels.arguments import check_tensor, check_vector
from octavo_kernels.arithmetic import cdiv
from octavo_kernels.launch import launch

_WORDS = 2048


def copy_pages(kv: torch.Tensor, src: torch.Tensor, dst: torch.Tensor) -> None:
    """Copy pages inside the pool.

    Args:
        kv: [P, L, 2, Hk, PAGE, D] contiguous pool of any dtype (any shape that starts with P).
        src: [N] int32 page ids; -1 skips the entry.
        dst: [N] int32 page ids, all different and none of them a source: copies run in no order.
    """
    check_vector("src", src, src.numel(), torch.int32, kv.device)
    check_vector("dst", dst, src.numel(), torch.int32, kv.device)
    pages = _words("kv", kv)
    _launch(pages, pages, src, src, dst)


def gather_pages(kv: torch.Tensor, page_ids: torch.Tensor, staging: torch.Tensor) -> None:
    """Copy pages of the pool to a contiguous buffer.

    Args:
        kv: [P, ...] contiguous pool.
        page_ids: [N] int32; -1 leaves its entry of `staging` untouched.
        staging: [N, ...] contiguous, dtype of kv, written.
    """
    check_vector("page_ids", page_ids, page_ids.numel(), torch.int32, kv.device)
    check_tensor("staging", staging, (page_ids.numel(), *kv.shape[1:]), kv.dtype, kv.device)
    _launch(_words("kv", kv), _words("staging", staging), page_ids, page_ids, None)


def scatter_pages(staging: torch.Tensor, page_ids: torch.Tensor, kv: torch.Tensor) -> None:
    """Copy a contiguous buffer back to pages of the pool.

    Args:
        staging: [N, ...] contiguous, dtype of kv.
        page_ids: [N] int32, all different; -1 skips the entry.
        kv: [P, ...] contiguous pool, written.
    """
    check_vector("page_ids", page_ids, page_ids.numel(), torch.int32, kv.device)
    check_tensor("staging", staging, (page_ids.numel(), *kv.shape[1:]), kv.dtype, kv.device)
    _launch(_words("staging", staging), _words("kv", kv), page_ids, None, page_ids)


def _words(name: str, pages: torch.Tensor) -> torch.Tensor:
    """View pages as rows of 4-byte words: bits move unchanged whatever the dtype."""
    if pages.ndim < 2 or not pages.is_contiguous():
        raise ValueError(f"{name}: shape {tuple(pages.shape)}, expected a contiguous tensor of pages")
    rows = pages.view(pages.shape[0], -1)
    if rows.shape[1] * rows.element_size() % 16 != 0:
        raise ValueError(f"{name}: {rows.shape[1] * rows.element_size()} bytes a page, expected a multiple of 16")
    return rows.view(torch.int32)


def _launch(
    src: torch.Tensor, dst: torch.Tensor, ids: torch.Tensor, src_ids: torch.Tensor | None, dst_ids: torch.Tensor | None
) -> None:
    if ids.numel() == 0:
        return
    width = src.shape[1]
    launch(
        _copy_words,
        (ids.numel(), cdiv(width, _WORDS)),
        src,
        dst,
        src_ids,
        dst_ids,
        width,
        WORDS=_WORDS,
        num_warps=4,
    )


@triton.jit
def _copy_words(src_ptr, dst_ptr, src_ids_ptr, dst_ids_ptr, width, WORDS: tl.constexpr):
    """dst[dst_ids[n]] = src[src_ids[n]] for WORDS words of entry n; without ids, the page is n itself.

    Grid (entry, words). A negative id skips the entry.
    """
    entry = tl.program_id(0)
    cols = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    src_page = entry.to(tl.int64)
    dst_page = entry.to(tl.int64)
    if src_ids_ptr is not None:
        src_page = tl.load(src_ids_ptr + entry).to(tl.int64)
    if dst_ids_ptr is not None:
        dst_page = tl.load(dst_ids_ptr + entry).to(tl.int64)
    inside = (cols < width) & (src_page >= 0) & (dst_page >= 0)
    words = tl.load(src_ptr + src_page * width + cols, mask=inside)
    tl.store(dst_ptr + dst_page * width + cols, words, mask=inside)
