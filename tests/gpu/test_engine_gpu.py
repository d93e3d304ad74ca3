"""The engine on a GPU: errors no larger than those of transformers, and steps in flight that never mix sequences up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
import transformers
import triton
from octavo_engine import messages
from octavo_engine.backends.triton_ops import TritonOps
from octavo_engine.batch import block_tables_of, build_batch
from octavo_engine.models.config import read_config
from octavo_engine.models.decoder import Decoder
from octavo_engine.models.weights import SafetensorsFiles
from octavo_engine.offline import OfflineEngine
from octavo_engine.sequence import Request, Row, Sampling, Sequence, StepPlan
from support.core_submit import submit
from support.gpu import NEEDS_GPU
from support.tiny_models import VOCAB, alone, engine, write_model

pytestmark = list(NEEDS_GPU)

PAGE_SIZE = 16
LENGTH = 100
PROMPTS = [[random.Random(seed).randrange(3, VOCAB) for _ in range(LENGTH)] for seed in range(32)]


def engine_logits(directory: Path, *, exact: bool) -> torch.Tensor:
    """Return the logits [prompts, vocabulary] after each prompt, computed in bfloat16 in one step."""
    config = read_config(directory)
    num_pages = -(-LENGTH // PAGE_SIZE)
    pool = torch.zeros(
        len(PROMPTS) * num_pages, config.num_layers, 2, config.num_kv_heads, PAGE_SIZE, config.head_dim,
        dtype=torch.bfloat16, device="cuda",
    )  # fmt: skip
    ops = TritonOps(config, pool, max_len=128, max_sequences=len(PROMPTS), exact=exact)
    decoder = Decoder(config, SafetensorsFiles(directory).fetch, ops)
    rows = tuple(
        Row(
            sequence=Sequence(request=Request(key=key, prompt=prompt, sampling=Sampling()), tokens=list(prompt)),
            start=0,
            num_tokens=LENGTH,
            samples=True,
            output_position=0,
            block_table=tuple(range(key * num_pages, (key + 1) * num_pages)),
            slot=key,
            generation=key,
        )
        for key, prompt in enumerate(PROMPTS)
    )
    plan = StepPlan(step_id=1, rows=rows)
    batch = build_batch(plan, PAGE_SIZE, block_tables_of(plan), lambda array: torch.from_numpy(array).cuda())
    with torch.inference_mode():
        logits = decoder.forward(batch)
    assert logits is not None
    return logits.double().cpu()


def hugging_face_logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor(PROMPTS, device=model.device)).logits[:, -1].double().cpu()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_bfloat16_errors_are_those_of_transformers(name: str, exact: bool, tmp_path: Path) -> None:
    write_model(tmp_path, name)
    # The reference has the weights rounded to bfloat16, as both engines read them: what is left is arithmetic.
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    reference = hugging_face_logits(rounded.double().eval())
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).cuda().eval()
    theirs = (hugging_face_logits(peer) - reference).norm() / reference.norm()
    ours = (engine_logits(tmp_path, exact=exact) - reference).norm() / reference.norm()
    assert 0 < ours <= 1.1 * theirs, f"{ours:.5f} against {theirs:.5f}"


def test_slots_change_hands_without_a_trace(tmp_path: Path) -> None:
    """Sequences of all lengths come and go in few slots, two steps in flight: each is what it is alone."""
    write_model(tmp_path, "qwen3")
    octavo = engine(tmp_path, device="cuda", dtype="bfloat16", numerics="exact", max_sequences=5, max_step_tokens=40)
    rng = random.Random(8)
    requests = [
        submit(
            key, PROMPTS[key % 32][: rng.randint(1, 90)], rng.randint(1, 40), temperature=0.8, seed=key,
            stop_token_ids=[key % VOCAB, 17, 40], min_tokens=key % 4,
        )
        for key in range(40)
    ]  # fmt: skip
    together = octavo.generate(requests)
    for request in requests:
        expected = alone(octavo, msgspec.structs.replace(request, key=1000 + request.key))
        output = together[request.key, 0]
        assert (output.token_ids, output.logprobs) == (expected.token_ids, expected.logprobs), f"request {request.key}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_read_together_gives_the_tokens_of_prefixes_read_alone(dtype: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    octavo = engine(tmp_path, device="cuda", dtype=dtype, numerics="exact", max_sequences=40)
    runner: Any = octavo._runner
    prompt = [7 + key % 300 for key in range(300)]
    requests = [submit(key, [*prompt, 20 + key], 30) for key in range(runner._ops.shared_members + 3)]
    octavo.generate(requests[:1])  # the others find its pages
    together = octavo.generate(requests)
    assert any(shape.shares for shape in runner.prepared._decode_steps)
    for request in requests:
        expected = alone(octavo, msgspec.structs.replace(request, key=1000 + request.key))
        output = together[request.key, 0]
        assert (output.token_ids, output.logprobs) == (expected.token_ids, expected.logprobs), f"request {request.key}"


def mixed_requests(count: int, first_key: int = 0) -> list[messages.Submit]:
    rng = random.Random(first_key)
    return [
        submit(key, PROMPTS[key % 32][: rng.randint(1, 90)], rng.randint(1, 40), temperature=0.8, seed=key)
        for key in range(first_key, first_key + count)
    ]


def warmed(octavo: OfflineEngine) -> Any:
    """Return the engine's runner, once it has prepared every usual step."""
    runner: Any = octavo._runner
    while not runner.is_warm:
        runner.warm_next()
    return runner


@pytest.mark.parametrize("is_idle_first", [True, False], ids=["while idle", "when they come again"])
def test_captured_steps_with_chunks_give_the_bits_of_uncaptured_ones(is_idle_first: bool, tmp_path: Path) -> None:
    write_model(tmp_path, "qwen3")
    settings = {
        "device": "cuda", "dtype": "bfloat16", "numerics": "exact", "max_sequences": 40, "max_step_tokens": 300,
        "itl_target_ms": 0,
    }  # fmt: skip
    captured, uncaptured = engine(tmp_path, **settings), engine(tmp_path, **settings)
    if is_idle_first:
        warmed(captured)
    runner: Any = uncaptured._runner
    runner.prepared.most_captured_tokens = 0
    runner.prepared._chunk_steps.clear()  # what it has met while it warmed up
    outputs = [octavo.generate(mixed_requests(60)) for octavo in (captured, uncaptured)]
    assert not runner.prepared._chunk_steps
    steps = cast("Any", captured._runner).prepared._chunk_steps.values()
    assert sum(step._graph is not None for step in steps) >= 3
    for at, output in outputs[0].items():
        assert (output.token_ids, output.logprobs) == (outputs[1][at].token_ids, outputs[1][at].logprobs), (
            f"request {at}"
        )


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_a_warm_engine_compiles_nothing_more(numerics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path, "qwen3")
    octavo = engine(tmp_path, device="cuda", dtype="bfloat16", numerics=numerics, max_sequences=40, max_step_tokens=300)
    warmed(octavo)
    compiled: list[str] = []

    def note(**facts: Any) -> None:
        compiled.append(facts["fn"].name)

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", note)
    octavo.generate(mixed_requests(60))
    octavo.generate(mixed_requests(3, first_key=60))
    assert compiled == []
