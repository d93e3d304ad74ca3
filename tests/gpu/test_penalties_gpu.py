"""Penalties on a CUDA device at full size: rows without any keep their bits, and a captured step counts what it draws."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from octavo_engine.backends.triton_ops import TritonOps
from octavo_engine.batch import Batch, Penalties
from octavo_engine.models.config import ModelConfig, Rope
from octavo_kernels import penalties, reference
from support.gpu import NEEDS_GPU

pytestmark = list(NEEDS_GPU)

VOCAB = 151_936
BATCH = 48
MODEL = ModelConfig(
    family="llama", vocab_size=VOCAB, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=1, num_kv_heads=1,
    head_dim=64, rms_norm_eps=1e-6, rope=Rope(), max_position=64, tie_embeddings=True, qk_norm=False, windows=(0,),
    eos_token_ids=(), dtype="bfloat16",
)  # fmt: skip


@pytest.fixture
def ops() -> TritonOps:
    torch.manual_seed(11)
    pool = torch.zeros(4, 1, 2, 1, 16, 64, dtype=torch.bfloat16, device="cuda")
    return TritonOps(MODEL, pool, max_len=64, max_sequences=BATCH, exact=True)


def some_logits() -> torch.Tensor:
    return (torch.randn(BATCH, VOCAB, device="cuda") * 3).to(torch.bfloat16)


def a_batch() -> Batch:
    """Return the sampling columns of a step: greedy rows, plain draws and truncated ones; nothing else is read."""
    at = torch.arange(BATCH, device="cuda")
    nothing = torch.zeros(0, dtype=torch.int64, device="cuda")
    return Batch(
        token_ids=nothing, positions=nothing, slots=nothing, row_of_token=None,
        context_lens=nothing, block_tables=nothing, num_decodes=BATCH, chunks=None, max_query_len=1,
        sample_tokens=at, temperature=(at % 4 > 0).float() * 0.8, top_k=torch.where(at % 4 == 2, 50, 0).int(),
        top_p=torch.where(at % 4 == 3, 0.9, 1.0), min_p=torch.where(at % 8 == 2, 0.02, 0.0), seeds=at * 7919,
        output_positions=at % 5, banned=(),
    )  # fmt: skip


def some_penalties(
    *, every: int = 1, frequency: float = 0.5, presence: float = -0.2, repetition: float = 1.3
) -> Penalties:
    """Return penalties of every so many rows, whose slots run backwards."""
    slots = torch.arange(BATCH, 0, -1, device="cuda")
    has_penalties = slots % every == 0
    counts = torch.randint(0, 20, (BATCH + 1, VOCAB), dtype=torch.int32, device="cuda")
    return Penalties(
        tallies=counts * (torch.rand(BATCH + 1, VOCAB, device="cuda") < 0.5),
        slots=slots,
        frequency=torch.where(has_penalties, frequency, 0.0),
        presence=torch.where(has_penalties, presence, 0.0),
        repetition=torch.where(has_penalties, repetition, 1.0),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernel_gives_the_bits_of_the_reference(dtype: torch.dtype) -> None:
    logits, given = some_logits().to(dtype), some_penalties(every=3)
    columns = [getattr(given, field.name) for field in dataclasses.fields(given)]
    out, expected = torch.empty(BATCH, VOCAB, device="cuda"), torch.empty(BATCH, VOCAB)
    penalties.penalize(logits, *columns, out)
    reference.penalize(logits.cpu(), *(column.cpu() for column in columns), expected)
    assert torch.equal(out.cpu(), expected)


def test_rows_without_penalties_keep_their_bits_beside_rows_with(ops: TritonOps) -> None:
    logits, batch, given = some_logits(), a_batch(), some_penalties(every=2)
    ids, logprobs = ops.sample(logits, batch)
    mixed_ids, mixed_logprobs = ops.sample(logits, dataclasses.replace(batch, penalties=given))
    plain = given.repetition == 1
    assert torch.equal(mixed_ids[plain], ids[plain])
    assert torch.equal(mixed_logprobs[plain], logprobs[plain])
    assert not torch.equal(mixed_ids[~plain], ids[~plain])


def test_penalties_too_small_to_change_a_logit_change_no_greedy_or_plain_draw(ops: TritonOps) -> None:
    """Truncated rows may differ by a token on the edge: their sums are made of fp32 logits, in another order."""
    logits, batch = some_logits(), a_batch()
    tiny = some_penalties(frequency=1e-30, presence=-1e-30, repetition=1.0)
    ids, logprobs = ops.sample(logits, batch)
    again, logprobs_again = ops.sample(logits, dataclasses.replace(batch, penalties=tiny))
    plain = (batch.top_p == 1) & (batch.top_k == 0)
    assert torch.equal(again[plain], ids[plain])
    assert torch.equal(logprobs_again[plain], logprobs[plain])


def test_log_probabilities_are_those_of_the_model(ops: TritonOps) -> None:
    logits = some_logits()
    ids, logprobs = ops.sample(logits, dataclasses.replace(a_batch(), penalties=some_penalties()))
    expected = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-4, rtol=1e-5)


def test_a_captured_step_counts_what_each_replay_draws(ops: TritonOps) -> None:
    given = some_penalties()
    batch = dataclasses.replace(a_batch(), penalties=given)
    logits = some_logits()
    before = given.tallies.clone()
    ops.sample(logits, batch)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids, _ = ops.sample(logits, batch)
    given.tallies.copy_(before)
    drawn = []
    for _ in range(10):
        expected_ids, _ = ops.sample(
            logits, dataclasses.replace(batch, penalties=dataclasses.replace(given, tallies=given.tallies.clone()))
        )
        graph.replay()
        assert torch.equal(ids, expected_ids)
        drawn.append(ids.clone())
    for step in drawn:
        before[given.slots, step] += 2
    assert torch.equal(given.tallies, before)
    assert len({tuple(step.tolist()) for step in drawn}) > 1, "counting changed nothing"
