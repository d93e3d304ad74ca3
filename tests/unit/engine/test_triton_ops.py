"""What the Triton backend sets aside for its kernels."""

from __future__ import annotations

import pytest
import torch
from octavo_engine.backends.triton_ops import TritonOps
from octavo_engine.batch import widest_table
from octavo_engine.models.config import ModelConfig, Rope
from octavo_kernels.decode_attention import decode_workspace_size

HEADS, HEAD_DIM = 32, 16
CONFIG = ModelConfig(
    family="llama", vocab_size=8, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=HEADS, num_kv_heads=1,
    head_dim=HEAD_DIM, rms_norm_eps=1e-6, rope=Rope(), max_position=4096, tie_embeddings=True, qk_norm=False,
    windows=(0,), eos_token_ids=(), dtype="float32",
)  # fmt: skip


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("max_len", [500, 1100, 2048, 4096])
def test_attention_has_room_for_the_widest_table_of_every_row(page_size: int, max_len: int) -> None:
    """Steps are padded: more rows than sequences, each with a table wider than its sequence."""
    pool = torch.zeros(4, 1, 2, 1, page_size, HEAD_DIM)
    ops = TritonOps(CONFIG, pool, max_len=max_len, max_sequences=64, exact=True)
    tokens = widest_table(max_len, page_size) * page_size
    assert tokens >= max_len
    assert ops._workspace.numel() >= decode_workspace_size(64, HEADS, HEAD_DIM, tokens)
