"""Batches on a shuffled page pool of the Llama-3.1-8B shape, for the attention benchmarks."""

import itertools
from dataclasses import dataclass

import torch

NUM_HEADS, KV_HEADS, HEAD_DIM, PAGE = 32, 8, 128, 16
# Calls take the layers of the pool in turn, as a model does: what one call reads has left the L2 cache by the next.
LAYERS = 8
SCALE = HEAD_DIM**-0.5
_BYTES = 2  # of a bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedInputs:
    """Sequences in pages: the newest q_len tokens of each are queries."""

    pool: torch.Tensor  # [P, L, 2, Hk, PAGE, D]
    q: torch.Tensor  # [T, Hq, D]
    block_table: torch.Tensor
    cu_q: torch.Tensor
    seq_lens: torch.Tensor
    out: torch.Tensor
    pairs: int  # of a query and a key that it sees

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (q, k, v, block table) of one layer."""
        return self.q, self.pool[:, layer, 0], self.pool[:, layer, 1], self.block_table

    @property
    def flops(self) -> float:
        """Operations of both products, with the causal mask."""
        return 4.0 * self.pairs * NUM_HEADS * HEAD_DIM

    def bytes(self, kv_tokens: int) -> float:
        """Bytes of this many tokens' keys and values, of the queries and of the output."""
        return float(_BYTES * (2 * kv_tokens * KV_HEADS * HEAD_DIM + 2 * self.q.numel()))


def paged_inputs(q_lens: list[int], lengths: list[int], *, shared: int = 0, group: int = 1) -> PagedInputs:
    """Build a batch; within `group` neighbours, the first `shared` tokens (whole pages) lie in the same pages."""
    pages = [-(-length // PAGE) for length in lengths]
    width = -(-max(pages) // 16) * 16
    page_ids = torch.randperm(sum(pages), dtype=torch.int32)
    pool = torch.empty(sum(pages), LAYERS, 2, KV_HEADS, PAGE, HEAD_DIM, dtype=torch.bfloat16, device="cuda").normal_()
    table = torch.zeros(len(lengths), width, dtype=torch.int32)
    for row, (first, count) in enumerate(zip(itertools.accumulate([0, *pages]), pages, strict=False)):
        table[row, :count] = page_ids[first : first + count]
        table[row, : shared // PAGE] = table[row // group * group, : shared // PAGE]
    q = torch.randn(sum(q_lens), NUM_HEADS, HEAD_DIM, device="cuda").to(torch.bfloat16)
    return PagedInputs(
        pool=pool,
        q=q,
        block_table=table.cuda(),
        cu_q=torch.tensor([0, *itertools.accumulate(q_lens)], dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        out=torch.empty_like(q),
        pairs=sum(q * length - q * (q - 1) // 2 for q, length in zip(q_lens, lengths, strict=True)),
    )
