"""Prefixes that rows of a step share: read together, they give the bits of prefixes read alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from octavo_engine.backends.triton_ops import TritonOps
from octavo_engine.batch import Inputs
from octavo_engine.models.config import parse_config
from octavo_engine.shared_prefixes import SharedFinder, SharedPrefixes, num_words
from octavo_kernels.cascade import SharedTile
from octavo_kernels.decode_plan import plan_decode
from octavo_kernels.heuristics import CHUNK

PAGE_SIZE, MAX_PAGES = 16, 20
NUM_ROWS = 5


def config(num_heads: int, **more: Any) -> Any:
    return parse_config(
        {
            "architectures": ["MistralForCausalLM"], "vocab_size": 9, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": num_heads, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6,
        }
        | more
    )  # fmt: skip


def ops_of(num_heads: int, **more: Any) -> TritonOps:
    pool = torch.randn(MAX_PAGES * NUM_ROWS, 1, 2, 2, PAGE_SIZE, 16, generator=torch.Generator().manual_seed(1))
    return TritonOps(config(num_heads, **more), pool, max_len=PAGE_SIZE * MAX_PAGES, max_sequences=NUM_ROWS, exact=True)


@pytest.mark.parametrize("num_heads", [2, 6, 16])
def test_rows_that_read_a_prefix_together_have_the_bits_of_rows_alone(num_heads: int) -> None:
    ops = ops_of(num_heads)
    tables = torch.arange(NUM_ROWS * MAX_PAGES, dtype=torch.int32).view(NUM_ROWS, MAX_PAGES)
    tables[:, : CHUNK // PAGE_SIZE] = tables[0, : CHUNK // PAGE_SIZE].clone()
    nothing = torch.zeros(NUM_ROWS, dtype=torch.int64)
    alone = Inputs(
        token_ids=nothing, positions=nothing, slots=nothing, row_of_token=None,
        context_lens=torch.arange(CHUNK + 3, CHUNK + 3 + NUM_ROWS, dtype=torch.int32), block_tables=tables,
        num_decodes=NUM_ROWS, chunks=None, max_query_len=1,
    )  # fmt: skip
    members = min(ops.shared_members, NUM_ROWS - 1)
    shared = SharedPrefixes(
        config(num_heads), NUM_ROWS, ops.shared_members, MAX_PAGES * PAGE_SIZE,
        words := torch.zeros(num_words(NUM_ROWS, ops.shared_members), dtype=torch.int32),
    )  # fmt: skip
    shared.fill(words.numpy(), [SharedTile(rows=tuple(range(members)), shared_len=CHUNK)])
    plan_decode(shared.plan, alone.context_lens)
    q = torch.randn(NUM_ROWS, num_heads * 16, generator=torch.Generator().manual_seed(2))
    assert members > 1
    assert torch.equal(ops.attention(q, dataclasses.replace(alone, shared=shared.plan), 0), ops.attention(q, alone, 0))


def test_models_with_windows_share_nothing() -> None:
    ops = ops_of(2, sliding_window=24)
    assert ops.shared_members == 0
    finder = SharedFinder(ops.shared_members, PAGE_SIZE)
    row: Any = type("Row", (), {"block_table": (1, 2), "start": 300, "generation": 1})
    assert finder.find([row, row]) == []
