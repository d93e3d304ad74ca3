"""Greedy tokens in float32 are those of transformers' `generate`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from octavo.model_directory import ModelNotFound, resolve_model
from octavo_engine.models.config import read_config
from support.core_submit import submit
from support.gpu import DEVICES
from support.tiny_models import CONFIGS, VOCAB, alone, engine, write_model

NUM_TOKENS = 64


def hugging_face_tokens(model: transformers.PreTrainedModel, prompt: list[int], **options: Any) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_tiny_model_gives_the_tokens_of_transformers(name: str, device: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, name)
    rng = random.Random(3)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (1, 15, 16, 17, 90)]
    octavo = engine(tmp_path, device=device, max_step_tokens=48)
    outputs = octavo.generate([submit(key, prompt, NUM_TOKENS) for key, prompt in enumerate(prompts)])
    for key, prompt in enumerate(prompts):
        assert outputs[key, 0].token_ids == hugging_face_tokens(model, prompt), f"prompt of {len(prompt)} tokens"


class OutputPenalties(transformers.LogitsProcessor):
    """Frequency and presence penalties as OpenAI defines them."""

    def __init__(self, num_prompt: int, frequency: float, presence: float) -> None:
        self._num_prompt, self._frequency, self._presence = num_prompt, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = input_ids[0, self._num_prompt :].bincount(minlength=VOCAB).float()
        return scores - self._frequency * counts - self._presence * (counts > 0).float()


@pytest.mark.parametrize("device", DEVICES)
def test_penalties_give_the_tokens_of_transformers(device: str, tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama")
    rng = random.Random(4)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (1, 16, 40)]
    octavo = engine(tmp_path, device=device, max_step_tokens=48)
    outputs = octavo.generate(
        [
            submit(key, prompts[key // 2], NUM_TOKENS, **style)
            for key, style in enumerate(
                [{"repetition_penalty": 1.3}, {"frequency_penalty": 0.5, "presence_penalty": 1.0}] * 3
            )
        ]
    )
    for index, prompt in enumerate(prompts):
        repetition = hugging_face_tokens(model, prompt, repetition_penalty=1.3)
        processors = transformers.LogitsProcessorList([OutputPenalties(len(prompt), 0.5, 1.0)])
        output_penalties = hugging_face_tokens(model, prompt, logits_processor=processors)
        plain = hugging_face_tokens(model, prompt)
        assert plain not in (repetition, output_penalties), "penalties that change nothing show nothing"
        assert outputs[2 * index, 0].token_ids == repetition, f"prompt of {len(prompt)} tokens"
        assert outputs[2 * index + 1, 0].token_ids == output_penalties, f"prompt of {len(prompt)} tokens"


def test_window_and_rope_scaling_reach_the_forward_pass(tmp_path: Path) -> None:
    """Guards the tests above: the special configurations must not silently fall back to the plain one."""
    for name in ("mistral-window", "llama3-rope"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, name)
    assert set(read_config(tmp_path / "mistral-window").windows) == {24}
    assert read_config(tmp_path / "llama3-rope").rope.factor == 8.0


PROMPTS = (
    "The capital of France is",
    "Write a short story about a lighthouse keeper who finds a message in a bottle. Start with the storm.",
    "def fibonacci(n):\n    # Return the first n numbers, e.g. 0 1 1 2 3 5 8 13 21 34\n",
)


def test_default_model_gives_the_tokens_of_transformers_on_real_prompts() -> None:
    try:
        directory = resolve_model()
    except ModelNotFound:
        pytest.fail("the default model is not prepared: run `make model`, which `make test` does first")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain in three sentences why the sky is blue."}],
        add_generation_prompt=True,
        return_dict=False,
    )
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS] + [chat]
    octavo = engine(directory, threads=2)
    outputs = octavo.generate([submit(key, prompt, NUM_TOKENS) for key, prompt in enumerate(prompts)])
    for key, prompt in enumerate(prompts):
        assert outputs[key, 0].token_ids == hugging_face_tokens(model, prompt)


def test_default_model_gives_the_same_bits_alone_and_in_a_batch() -> None:
    """Real widths: products in several chains along K, streamed and packed weights, a vocabulary of 49,152."""
    directory = resolve_model()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS] * 7
    seeded = {"temperature": 0.8, "top_p": 0.9, "seed": 3}
    octavo = engine(directory, threads=2, numerics="exact")
    expected = [alone(octavo, submit(100 + i, prompt, 6, **seeded)) for i, prompt in enumerate(prompts[:3])]
    octavo.scheduler.flush()
    outputs = octavo.generate([submit(key, prompt, 6, **seeded) for key, prompt in enumerate(prompts)])
    one_thread = engine(directory, threads=1, numerics="exact", max_step_tokens=40)
    for key in range(len(prompts)):
        assert outputs[key, 0].token_ids == expected[key % 3].token_ids
        assert outputs[key, 0].logprobs == expected[key % 3].logprobs
    for index in range(3):
        again = alone(one_thread, submit(200 + index, prompts[index], 6, **seeded))
        assert (again.token_ids, again.logprobs) == (expected[index].token_ids, expected[index].logprobs)
