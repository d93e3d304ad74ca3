"""Attention problems on a poisoned page pool, small under the interpreter and full-sized on a GPU."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from octavo_kernels import reference
from octavo_kernels.decode_attention import decode_workspace_size, paged_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.heuristics import CHUNK
from octavo_kernels.launch import interpreted

ON_GPU = torch.cuda.is_available() and not interpreted()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

# ||kernel - reference|| / ||reference||, the reference in fp64 on the same rounded inputs. Casts to bf16 truncate in the
# interpreter, where a GPU rounds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3 if ON_GPU else 1e-2}


@dataclass(frozen=True)
class Shape:
    head_dim: int
    group: int
    page_size: int
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    kv_heads: int = 8 if ON_GPU else 1
    chunk: int = CHUNK if ON_GPU else 64

    def __str__(self) -> str:
        name = f"d{self.head_dim}-g{self.group}-page{self.page_size}-window{self.window}-{str(self.dtype)[6:]}"
        return name + "-softcap" * (self.softcap > 0) + "-sinks" * self.sinks


# Each value of each axis occurs, and the pairs that share code; the full product would take the interpreter an hour.
SHAPES = [
    Shape(32, 1, 16, kv_heads=3),
    Shape(64, 4, 16),
    Shape(64, 5, 32, window=1),
    Shape(80, 7, 16, window=20, sinks=True),
    Shape(128, 8, 64, softcap=30.0),
    Shape(32, 4, 32, window=1000, softcap=30.0, sinks=True),
    Shape(128, 4, 16, window=100, dtype=torch.float16),
    Shape(64, 8, 16, dtype=torch.bfloat16, sinks=True, kv_heads=2),
]
if ON_GPU:
    SHAPES += [replace(shape, dtype=dtype) for shape in SHAPES[:6] for dtype in (torch.float16, torch.bfloat16)]
    SHAPES += [Shape(256, 2, 16, dtype=torch.bfloat16), Shape(96, 16, 64, dtype=torch.bfloat16)]


def tricky_lengths(shape: Shape) -> list[int]:
    page, chunk = shape.page_size, shape.chunk
    lengths = [0, 1, page - 1, page, page + 1, chunk - 1, chunk, chunk + 1, 2 * chunk + 5]
    return [*lengths, 10_000, 3] if ON_GPU else lengths


@dataclass
class Batch:
    """Sequences in a page-major pool in which everything that no query may see is NaN."""

    shape: Shape
    kv: torch.Tensor  # [P, L, 2, Hk, PAGE, D]
    block_table: torch.Tensor
    cu_q: torch.Tensor
    seq_lens: torch.Tensor
    q: torch.Tensor  # [T, Hq, D]
    sinks: torch.Tensor | None

    @property
    def k(self) -> torch.Tensor:
        return self.kv[:, 1, 0]

    @property
    def v(self) -> torch.Tensor:
        return self.kv[:, 1, 1]

    @property
    def options(self) -> dict[str, object]:
        shape = self.shape
        options = {"scale": shape.head_dim**-0.5, "window": shape.window, "softcap": shape.softcap}
        return {**options, "sinks": self.sinks}

    def only(self, row: int) -> Batch:
        """The same sequence as a batch of its own, with a block table just wide enough."""
        start, stop = self.cu_q[row : row + 2].tolist()
        width = max(1, -(-int(self.seq_lens[row]) // self.shape.page_size))
        return replace(
            self,
            block_table=self.block_table[row : row + 1, :width].contiguous(),
            cu_q=torch.tensor([0, stop - start], dtype=torch.int32, device=DEVICE),
            seq_lens=self.seq_lens[row : row + 1].clone(),
            q=self.q[start:stop].contiguous(),
        )

    def expected(self, *, causal: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        clean = self.kv.nan_to_num(0.0)  # the reference multiplies what it masks by 0
        return reference.paged_attention_reference(
            self.q,
            clean[:, 1, 0],
            clean[:, 1, 1],
            self.block_table,
            self.cu_q,
            self.seq_lens,
            causal=causal,
            **self.options,
        )

    def decode(self) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch.full_like(self.q, torch.nan), self._lse()
        max_len = self.block_table.shape[1] * self.shape.page_size
        size = decode_workspace_size(*self.q.shape, max_len, self.shape.chunk)
        workspace = torch.full((size,), torch.nan, device=DEVICE)
        paged_decode(
            self.q, self.k, self.v, self.block_table, self.seq_lens, out, workspace,
            chunk=self.shape.chunk, lse=lse, **self.options,
        )  # fmt: skip
        return out, lse

    def extend(self, *, max_q_len: int | None = None, causal: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch.full_like(self.q, torch.nan), self._lse()
        paged_extend(
            self.q, self.k, self.v, self.block_table, self.cu_q, self.seq_lens, out,
            lse=lse, max_q_len=max_q_len, causal=causal, **self.options,
        )  # fmt: skip
        return out, lse

    def _lse(self) -> torch.Tensor:
        return torch.full(self.q.shape[:2], torch.nan, device=DEVICE)


def make_batch(shape: Shape, lengths: list[int], q_lens: list[int], *, padding_rows: int = 0) -> Batch:
    """Build a batch on shuffled pages; the second sequence shares the first page of the last where both fill it."""
    page = shape.page_size
    num_pages = [-(-length // page) for length in lengths]
    pool_pages = sum(num_pages) + 2
    page_ids = iter(torch.randperm(pool_pages).tolist())
    tables = [list(itertools.islice(page_ids, count)) for count in num_pages]
    unused = next(page_ids)
    if len(lengths) > 2 and min(lengths[2], lengths[-1]) >= page:
        tables[2][0] = tables[-1][0]
    kv = torch.full((pool_pages, 2, 2, shape.kv_heads, page, shape.head_dim), torch.nan)
    for table, length, q_len in zip(tables, lengths, q_lens, strict=True):
        oldest = max(0, length - q_len + 1 - shape.window) if shape.window else 0
        for index in range(oldest // page):
            table[index] = -1  # no query sees it any more: the page went back to the pool
        for token in range(oldest, length):
            kv[table[token // page], 1, :, :, token % page] = torch.randn(2, shape.kv_heads, shape.head_dim)
    block_table = torch.full((len(lengths), max(num_pages) + 1), unused, dtype=torch.int32)
    for row, table in enumerate(tables):
        block_table[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
    num_heads = shape.kv_heads * shape.group
    return Batch(
        shape=shape,
        kv=kv.to(DEVICE, shape.dtype),
        block_table=block_table.to(DEVICE),
        cu_q=torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32, device=DEVICE),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        q=torch.randn(sum(q_lens) + padding_rows, num_heads, shape.head_dim).to(DEVICE, shape.dtype),
        sinks=torch.randn(num_heads).to(DEVICE) if shape.sinks else None,
    )


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert not got.isnan().any()
    error = (got.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error < TOLERANCE[dtype], f"relative error {error:.2e}"


def assert_lse_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, atol=1e-3, rtol=0)
