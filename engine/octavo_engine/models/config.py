"""Reads config.json of a Hugging Face model directory into one shape description, written by transformers 4 or 5."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SUPPORTED: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


class UnsupportedModel(Exception):
    """The model directory asks for something that Octavo does not compute. The message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base, and the llama3 frequency scaling where `factor` is not 1."""

    theta: float = 10_000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder.

    Attributes:
        family: "llama", "mistral", "qwen2" or "qwen3".
        windows: per layer, most keys that a query sees, itself included; 0 means all.
        qk_norm: normalize q and k per head before rotation (Qwen3).
        eos_token_ids: ids that end an output, from generation_config.json where there is one.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: Rope
    max_position: int
    tie_embeddings: bool
    qk_norm: bool
    windows: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    dtype: str


def read_config(directory: Path) -> ModelConfig:
    """Read a model directory's config.json.

    Raises:
        UnsupportedModel: the architecture, activation or rope type is not one of ours.
    """
    raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    generation = directory / "generation_config.json"
    chosen = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    return parse_config(raw, chosen)


def parse_config(raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    """Turn the parsed JSON of config.json and generation_config.json into a ModelConfig."""
    architecture = (raw.get("architectures") or ["(none)"])[0]
    if architecture not in SUPPORTED:
        raise UnsupportedModel(f"architecture {architecture} is not one of {', '.join(SUPPORTED)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"activation {raw['hidden_act']!r} is not silu")
    family = SUPPORTED[architecture]
    heads = int(raw["num_attention_heads"])
    layers = int(raw["num_hidden_layers"])
    return ModelConfig(
        family=family,
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw),
        max_position=int(raw.get("max_position_embeddings", 2048)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qk_norm=family == "qwen3",
        windows=_windows(raw, family, layers),
        eos_token_ids=_eos(generation or {}) or _eos(raw),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _rope(raw: dict[str, Any]) -> Rope:
    # transformers 5 writes rope_parameters; version 4 wrote rope_theta and rope_scaling beside each other.
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta=theta)
    if kind == "llama3":
        return Rope(
            theta=theta,
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position=int(scaling["original_max_position_embeddings"]),
        )
    raise UnsupportedModel(f"rope type {kind!r} is not one of default, llama3")


def _windows(raw: dict[str, Any], family: str, layers: int) -> tuple[int, ...]:
    window = int(raw.get("sliding_window") or 0)
    if "layer_types" in raw:
        return tuple(window if kind == "sliding_attention" else 0 for kind in raw["layer_types"])
    if family == "mistral":
        return (window,) * layers
    if family.startswith("qwen") and raw.get("use_sliding_window"):
        first = int(raw.get("max_window_layers", layers))
        return tuple(window if layer >= first else 0 for layer in range(layers))
    return (0,) * layers


def _eos(raw: dict[str, Any]) -> tuple[int, ...]:
    ids = raw.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (int(ids),)
