"""Tiny random models in Hugging Face form, and an engine over one without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from octavo_engine import loading, messages
from octavo_engine.config import EngineConfig
from octavo_engine.offline import OfflineEngine, Output
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

VOCAB = 384

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Random weights of the usual size give nearly flat logits; larger ones make every choice a clear one.
    "initializer_range": 0.12,
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_SHAPE),
    "llama3-rope": lambda: transformers.LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3_SCALING),
    "llama-tied-bias": lambda: transformers.LlamaConfig(
        **(_SHAPE | {"tie_word_embeddings": True}), attention_bias=True
    ),
    "mistral-window": lambda: transformers.MistralConfig(**_SHAPE, sliding_window=24),
    "qwen2": lambda: transformers.Qwen2Config(**_SHAPE),
    "qwen3": lambda: transformers.Qwen3Config(**_SHAPE),
}


def write_model(directory: Path, name: str) -> transformers.PreTrainedModel:
    """Write a random model of a named configuration; return it as transformers runs it, in float32."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias") or "norm" in key:  # zeros and ones would hide a bias or a weight left out
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(directory)
    Tokenizer(WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0")).save(str(directory / "tokenizer.json"))
    return model


def engine(directory: Path, **settings: Any) -> OfflineEngine:
    """Return an engine over a model directory; settings are those of EngineConfig."""
    defaults: dict[str, Any] = {"model": str(directory), "device": "cpu", "dtype": "float32", "threads": 1}
    if "kv_memory" not in settings:
        defaults["num_pages"] = 256
    config = EngineConfig(**(defaults | settings))
    return OfflineEngine(config, loading.load(config, lambda _stage, _share: None))


def alone(octavo: OfflineEngine, request: messages.Submit) -> Output:
    """Run one request with nobody beside it, from an empty prefix cache; return its first choice."""
    octavo.scheduler.flush()
    octavo.scheduler.drain()
    return octavo.generate([request])[request.key, 0]
