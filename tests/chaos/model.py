"""A tiny random model with a byte-level tokenizer: its text is noise, but always the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file
from support.tiny_tokenizer import EOS_ID, write_model_directory

_SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
_SCALE: Final = 0.12  # large enough that every choice of a token is a clear one


def write_tiny_model(directory: Path) -> Path:
    """Write a model that engines and routers can serve. Without torch, whose import takes seconds."""
    write_model_directory(directory)
    config = {
        **_SHAPE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(_weights(), directory / "model.safetensors")
    return directory


def _weights() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(7)
    hidden, inner = _SHAPE["hidden_size"], _SHAPE["intermediate_size"]
    queries, keys = (_SHAPE[heads] * _SHAPE["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    weights = dict.fromkeys(("model.embed_tokens", "lm_head"), (_SHAPE["vocab_size"], hidden))
    for layer in (f"model.layers.{index}" for index in range(_SHAPE["num_hidden_layers"])):
        weights |= {f"{layer}.self_attn.q_proj": (queries, hidden), f"{layer}.self_attn.o_proj": (hidden, queries)}
        weights |= {f"{layer}.self_attn.{each}_proj": (keys, hidden) for each in "kv"}
        weights |= {f"{layer}.mlp.{each}_proj": (inner, hidden) for each in ("gate", "up")}
        weights |= {f"{layer}.mlp.down_proj": (hidden, inner)}
    tensors = {
        f"{name}.weight": draw.normal(0, _SCALE, shape).astype(np.float32) for name, shape in sorted(weights.items())
    }
    for index in range(_SHAPE["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{index}.{norm}.weight"] = np.ones(hidden, np.float32)
    return tensors | {"model.norm.weight": np.ones(hidden, np.float32)}
