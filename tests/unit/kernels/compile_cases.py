"""Compile every kernel for sm_90 with the shapes of real models and print one JSON line per launch.

A script of its own: Triton decides once a process whether kernels are interpreted, and the tests around it interpret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import torch
import triton
import triton.language as tl
from octavo_kernels import activation, copy_pages, merge_states, norm, penalties, rope_write, sampling
from octavo_kernels import launch as launcher
from octavo_kernels.compile_ahead import compile_ahead
from octavo_kernels.decode_attention import decode_workspace_size, most_members, paged_decode
from octavo_kernels.decode_plan import allocate_plan, plan_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.heuristics import CHUNK, EXTEND, EXTEND_EXACT, lookup
from octavo_kernels.matmul import launch_product
from octavo_kernels.matmul_tiles import FEW_ROWS, MANY_ROWS, ProductTile, exact_tile
from octavo_kernels.norm import _rmsnorm_rows as norm_kernels
from support.compile_check import compiling

BF16 = torch.bfloat16
SHARED = {"shared_tiles": 16}


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    for head_dim, group, page_size in ((128, 4, 16), (128, 4, 64), (64, 8, 16), (256, 2, 16)):
        options = f"d{head_dim} g{group} page{page_size}"
        yield f"decode {options}", attention("decode", head_dim, group, page_size)
        yield f"extend {options}", attention("extend", head_dim, group, page_size)
    yield "extend d128 g5 page16", attention("extend", 128, 5, 16)
    for page_size in (16, 64):  # what other hardware, and other releases of Triton, run
        yield f"extend d128 g4 page{page_size} tile", attention("extend", 128, 4, page_size, table=EXTEND)
    yield "decode d80 g1 page16", attention("decode", 80, 1, 16)
    extras = {"window": 128, "softcap": 30.0, "sinks": True}
    yield "decode d128 g4 page16 window softcap sinks", attention("decode", 128, 4, 16, **extras)
    yield "extend d128 g4 page16 window softcap sinks", attention("extend", 128, 4, 16, **extras)
    yield "decode d128 g4 page16 fp32", attention("decode", 128, 4, 16, dtype=torch.float32)
    yield "extend d128 g4 page16 fp32", attention("extend", 128, 4, 16, dtype=torch.float32)
    tiles = {entry.tile for entry in FEW_ROWS} | {candidate.tile for candidate in MANY_ROWS}
    halves = {replace(candidate.tile, columns=candidate.tile.columns // 2) for candidate in MANY_ROWS}
    for tile in tiles:
        yield f"product {tile}", product(tile)
    for tile in {entry.gated_tile for entry in FEW_ROWS} | halves:
        yield f"gated product {tile}", product(tile, gated=True)
    yield "product fp32", product(exact_tile(90, torch.float32, 64, 4096, 132, gated=False), dtype=torch.float32)
    for head_dim, group, page_size in ((128, 4, 16), (64, 8, 16)):
        options = f"d{head_dim} g{group} page{page_size} exact"
        yield f"decode {options}", attention("decode", head_dim, group, page_size, exact=True)
        yield f"extend {options}", attention("extend", head_dim, group, page_size, exact=True)
        yield f"extend {options} tile", attention("extend", head_dim, group, page_size, exact=True, table=EXTEND_EXACT)
        yield f"decode {options} plan", attention("decode", head_dim, group, page_size, exact=True, plan={})
        yield f"decode {options} span", attention("decode", head_dim, group, page_size, exact=True, span=8)
        yield f"decode {options} shared", attention("decode", head_dim, group, page_size, exact=True, plan=SHARED)
    yield "extend d128 g4 page16 exact window softcap sinks", attention("extend", 128, 4, 16, exact=True, **extras)
    yield "decode d128 g4 page16 plan", attention("decode", 128, 4, 16, plan={})
    yield "rope d128 qknorm", rope
    yield "merge d128", merge
    yield "norm", norms
    yield "silu", silu
    yield "copy", copies
    yield "sample", samples
    yield "penalties", penalized


def pool(num_kv_heads: int, page_size: int, head_dim: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(4, 2, 2, num_kv_heads, page_size, head_dim, dtype=dtype)


def attention(
    kind,
    head_dim,
    group,
    page_size,
    *,
    dtype=BF16,
    window=0,
    softcap=0.0,
    sinks=False,
    exact=False,
    plan=None,
    span=1,
    table=None,
):
    def launch() -> None:
        num_heads = 2 * group
        num_rows = 8192 if kind == "extend" else 64  # enough of a chunk for a whole device
        kv = pool(2, page_size, head_dim, dtype)
        k, v = kv[:, 1, 0], kv[:, 1, 1]
        q = torch.empty(num_rows, num_heads, head_dim, dtype=dtype)
        lengths = torch.zeros(64, dtype=torch.int32)
        tables = torch.zeros(64, 1024, dtype=torch.int32)
        options = {
            "scale": head_dim**-0.5,
            "window": window,
            "softcap": softcap,
            "sinks": torch.empty(num_heads) if sinks else None,
            "lse": torch.empty(num_rows, num_heads),
            "exact": exact,
        }
        if kind == "decode":
            size = decode_workspace_size(64, num_heads, head_dim, 1024 * page_size)
            work = None
            if plan is not None:
                limits = {"max_batch": 64, "max_len": 1024 * page_size, "num_kv_heads": 2, "programs": 264}
                members = most_members(head_dim, group, dtype, page_size) if plan else 0
                work = allocate_plan(**limits, chunk=CHUNK, device=q.device, members=members, **plan)
                plan_decode(work, lengths)
            options |= {"plan": work, "span": span}
            paged_decode(q, k, v, tables, lengths, torch.empty_like(q), torch.empty(size), **options)
        else:
            cu_q = torch.zeros(65, dtype=torch.int32)
            if table is not None:
                options["tile"] = lookup(table, 90, head_dim, group, dtype, page_size)
            paged_extend(q, k, v, tables, cu_q, lengths, torch.empty_like(q), **options)

    return launch


def product(tile: ProductTile, *, gated: bool = False, dtype: torch.dtype = BF16) -> Callable[[], None]:
    """A product with a bias, and one that is added to the residual."""

    def launch() -> None:
        x, w, bias = (
            torch.empty(64, 1024, dtype=dtype),
            torch.empty(4096, 1024, dtype=dtype),
            torch.empty(4096, dtype=dtype),
        )
        out = torch.empty(64, 2048 if gated else 4096, dtype=dtype)
        launch_product(tile, x, w, bias, None, out, gated=gated)
        if not gated:
            launch_product(tile, x, w, None, out, out, gated=False)

    return launch


def rope() -> None:
    kv = pool(8, 16, 128)
    qkv, weight = torch.empty(64, 48 * 128, dtype=BF16), torch.empty(128, dtype=BF16)
    tokens = torch.zeros(64, dtype=torch.int64)
    q_out = torch.empty(64, 32, 128, dtype=BF16)
    k, v = kv[:, 1, 0], kv[:, 1, 1]
    rope_write.rope_qknorm_write(qkv, tokens, tokens, torch.empty(4096, 128), k, v, q_out, weight, weight)


def merge() -> None:
    out, lse = torch.empty(64, 32, 128, dtype=BF16), torch.empty(64, 32)
    merge_states.merge_states(out, lse, out, lse, out, lse)


def norms() -> None:
    x, weight = torch.empty(64, 4096, dtype=BF16), torch.empty(4096, dtype=BF16)
    norm.rmsnorm(x, weight, torch.empty_like(x), 1e-6)
    norm.add_rmsnorm(x, torch.empty_like(x), weight, torch.empty_like(x), 1e-6)


def silu() -> None:
    activation.silu_mul(torch.empty(64, 2 * 14336, dtype=BF16), torch.empty(64, 14336, dtype=BF16))


def copies() -> None:
    kv = pool(8, 16, 128)
    ids = torch.zeros(2, dtype=torch.int32)
    copy_pages.copy_pages(kv, ids, ids)
    copy_pages.gather_pages(kv, ids, kv[:2])
    copy_pages.scatter_pages(kv[:2], ids, kv)


def samples() -> None:
    real, whole = torch.empty(64), torch.empty(64, dtype=torch.int64)
    workspace = torch.empty(sampling.sample_workspace_size(64, 128256))
    logits, counts = torch.empty(64, 128256), torch.empty(64, dtype=torch.int32)
    sampling.sample(logits, real, counts, real, real, whole, whole, whole, real, workspace)


def penalized() -> None:
    real, whole, logits = torch.empty(64), torch.empty(64, dtype=torch.int64), torch.empty(64, 128256, dtype=BF16)
    columns = (torch.zeros(65, 128256, dtype=torch.int32), whole, real, real, real)
    penalties.penalize(logits, *columns, torch.empty(64, 128256))
    penalties.take_penalized(logits, whole, *columns, whole, real)


def main() -> None:
    late: list[str] = []

    def note(*, fn: Any, **_: Any) -> None:
        late.append(fn.name)

    with compiling() as kernels:
        compile_ahead(all_cases).close()
        print(json.dumps({"launched_ahead": len(kernels)}), flush=True)  # noqa: T201 - its output is its purpose
        triton.knobs.runtime.jit_post_compile_hook = note
        for name, launch in cases():
            kernels.clear()
            launch()
            once = kernels.copy()
            launch()
            print(json.dumps({"launched_again": kernels == 2 * once}), flush=True)  # noqa: T201
            for kernel in once:
                fields = {k: getattr(kernel, k) for k in kernel.__dataclass_fields__}
                print(json.dumps({"case": name, **fields}), flush=True)  # noqa: T201
        print(json.dumps({"compiled_late": late}), flush=True)  # noqa: T201
        kernels.clear()
        compile_ahead(all_cases).close()
        print(json.dumps({"launched_ahead": len(kernels)}), flush=True)  # noqa: T201
        ahead = hashes_of_kernels()
        forget_norms()
        norms()
        print(json.dumps({"same_kernels": bool(ahead) and ahead == hashes_of_kernels()}), flush=True)  # noqa: T201
        kernels.clear()
        compile_ahead(in_a_thread(silu)).close()
        print(json.dumps({"launched_beside": len(kernels)}), flush=True)  # noqa: T201
        try:
            compile_ahead(broken)
        except triton.CompilationError as error:
            print(json.dumps({"broken": type(error).__name__}), flush=True)  # noqa: T201
        kernels.clear()
        compile_ahead(copies).close()
        copies()
        print(json.dumps({"launched_after_a_failure": len(kernels)}), flush=True)  # noqa: T201
        forget_norms()
        kernels.clear()
        on_their_way = compile_ahead(norms, broken)
        ready = len(hashes_of_kernels())
        late.clear()
        norms()
        facts = {"ready_first": ready, "launched": len(kernels), "late": late.copy()}
        facts["ended"] = on_their_way.ends_within(60)
        try:
            on_their_way.result()
        except triton.CompilationError as error:
            facts["broken"] = type(error).__name__
        on_their_way.close()
        print(json.dumps({"compile_ahead": facts}), flush=True)  # noqa: T201
        for name, operands in forms_of_one_kernel():
            late.clear()
            activation.silu_mul(*operands)
            print(json.dumps({"form": name, "compiled": len(late)}), flush=True)  # noqa: T201


def all_cases() -> None:
    for _, launch in cases():
        launch()


def in_a_thread(function: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        thread = Thread(target=function)
        thread.start()
        thread.join()

    return run


def forget_norms() -> None:
    norm_kernels.device_caches.clear()
    launcher._compiled.clear()


def hashes_of_kernels() -> set[str]:
    """Return what names the norms' compiled kernels: all that they were compiled from, and with."""
    return {kernel.hash for caches in norm_kernels.device_caches.values() for kernel in caches[0].values()}


@triton.jit
def _broken(x_ptr):
    tl.store(x_ptr + tl.arange(0, 3), 0.0)  # not a power of two


def broken() -> None:
    launcher.launch(_broken, (1,), torch.empty(16))


def forms_of_one_kernel() -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Operands for one launcher: whatever a kernel is specialized for has a form of its own."""
    whole = torch.empty(8, 4096, dtype=BF16)
    yield "first", (whole[:, :64], whole[:, 64:96])
    yield (
        "more rows than before",
        (torch.empty(90, 4096, dtype=BF16)[:, :64], torch.empty(90, 4096, dtype=BF16)[:, :32]),
    )
    yield "another address", (whole[:, 1:65], whole[:, 128:160])
    yield "another stride", (torch.empty(8, 4097, dtype=BF16)[:, :64], whole[:, 64:96])
    yield "another width", (whole[:, :62], whole[:, 64:95])
    yield "another type", (torch.empty(8, 4096)[:, :64], torch.empty(8, 4096)[:, :32])
    yield "the first again", (whole[:, :64], whole[:, 64:96])


if __name__ == "__main__":
    main()
