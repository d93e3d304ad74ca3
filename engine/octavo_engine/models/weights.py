"""Loads a decoder's weights from safetensors, merging what is computed together (q|k|v and gate|up)."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from octavo.random_model import random_seed
from safetensors import safe_open

from octavo_engine.models.config import ModelConfig, UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """Weight [out, in] and optional bias [out] of one matrix product."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer: norms [hidden], products as merged for the forward pass."""

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """Everything but the layers, which are loaded one at a time to keep the peak memory low."""

    embedding: torch.Tensor  # [vocab, hidden]
    final_norm: torch.Tensor  # [hidden]
    lm_head: torch.Tensor | None  # [vocab, hidden]; None if tied to the embedding


Fetch = Callable[[str], torch.Tensor | None]


class SafetensorsFiles:
    """Tensors of a model directory by name, one file or sharded."""

    def __init__(self, directory: Path) -> None:
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {name: directory / file for name, file in names.items()}
        else:
            paths = sorted(directory.glob("*.safetensors"))
            if not paths:
                raise UnsupportedModel(f"{directory} holds no *.safetensors (pickled weights are never read)")
            self._files = {}
            for path in paths:
                with safe_open(path, framework="pt") as file:
                    self._files |= dict.fromkeys(file.keys(), path)

    def fetch(self, name: str) -> torch.Tensor | None:
        """Return a tensor on the CPU in its stored type, or None if there is none of that name."""
        path = self._files.get(name)
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def open_weights(directory: Path, config: ModelConfig, device: torch.device) -> Fetch:
    """Return the source of a model directory's tensors.

    Its safetensors, or random numbers drawn on the device if config.json asks for them (`octavo.random_model`).

    Raises:
        UnsupportedModel: the directory holds neither.
    """
    seed = random_seed(directory)
    return SafetensorsFiles(directory).fetch if seed is None else random_fetch(config, seed, device)


def random_fetch(config: ModelConfig, seed: int = 0, device: torch.device | None = None) -> Fetch:
    """Return a source of random weights of a config's shapes (normal, sd 0.02; norms 1), for benchmarks and tests.

    Args:
        config: the shapes.
        seed: the same seed gives the same weights on devices of one kind.
        device: where they are drawn, the CPU by default; in bfloat16 on a GPU, where billions take a second, and in
            float32 on a CPU.
    """
    shapes = dict(_shapes(config))
    place = torch.device("cpu") if device is None else device
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16

    def fetch(name: str) -> torch.Tensor | None:
        shape = shapes.get(name)
        if shape is None:
            return None
        if len(shape) == 1 and name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=place)
        # Each tensor has a generator of its own, so that the order of loading does not matter. The CPU's generator
        # reads 32 bits of its seed.
        generator = torch.Generator(place).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        return torch.randn(shape, generator=generator, dtype=dtype, device=place).mul_(0.02)

    return fetch


def load_weights(config: ModelConfig, fetch: Fetch) -> ModelWeights:
    """Load what stands outside the layers."""
    lm_head = None if config.tie_embeddings else _need(fetch, "lm_head.weight")
    return ModelWeights(
        embedding=_need(fetch, "model.embed_tokens.weight"),
        final_norm=_need(fetch, "model.norm.weight"),
        lm_head=lm_head,
    )


def load_layer(config: ModelConfig, fetch: Fetch, layer: int) -> LayerWeights:
    """Load one layer."""
    prefix = f"model.layers.{layer}."
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    return LayerWeights(
        input_norm=_need(fetch, f"{prefix}input_layernorm.weight"),
        qkv=_merged(fetch, [f"{attention}{name}_proj" for name in "qkv"]),
        q_norm=_need(fetch, f"{attention}q_norm.weight") if config.qk_norm else None,
        k_norm=_need(fetch, f"{attention}k_norm.weight") if config.qk_norm else None,
        output=_merged(fetch, [f"{attention}o_proj"]),
        post_norm=_need(fetch, f"{prefix}post_attention_layernorm.weight"),
        gate_up=_merged(fetch, [f"{mlp}gate_proj", f"{mlp}up_proj"]),
        down=_merged(fetch, [f"{mlp}down_proj"]),
    )


def _need(fetch: Fetch, name: str) -> torch.Tensor:
    tensor = fetch(name)
    if tensor is None:
        raise UnsupportedModel(f"the weights lack the tensor {name}")
    return tensor


def _merged(fetch: Fetch, names: list[str]) -> Linear:
    weights = [_need(fetch, f"{name}.weight") for name in names]
    biases = [fetch(f"{name}.bias") for name in names]
    bias = None
    if any(each is not None for each in biases):
        parts = [
            torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device) if each is None else each
            for weight, each in zip(weights, biases, strict=True)
        ]
        bias = torch.cat(parts)
    return Linear(weight=weights[0] if len(weights) == 1 else torch.cat(weights), bias=bias)


def num_parameters(config: ModelConfig) -> int:
    """Return how many numbers the weights of a config's shapes hold."""
    return sum(math.prod(shape) for _, shape in _shapes(config))


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
            if config.family == "qwen2":
                yield f"{prefix}self_attn.{name}_proj.bias", (rows,)
        if config.qk_norm:
            yield f"{prefix}self_attn.q_norm.weight", (config.head_dim,)
            yield f"{prefix}self_attn.k_norm.weight", (config.head_dim,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, q)
        yield f"{prefix}mlp.gate_proj.weight", (ffn, hidden)
        yield f"{prefix}mlp.up_proj.weight", (ffn, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, ffn)
