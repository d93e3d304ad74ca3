"""The order in which a decoder loads its layers, and the sketch that needs only some of them."""
# ruff: noqa: ARG002 - the interface of operations.

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from octavo.random_model import write_random_model
from octavo_engine.models.config import ModelConfig, read_config
from octavo_engine.models.decoder import Decoder
from octavo_engine.models.weights import random_fetch


class Trace:
    """Operations that compute nothing and note which layers attend, and what each norm is."""

    def __init__(self) -> None:
        self.attended: list[int] = []
        self.norms: list[torch.Tensor] = []

    def prepare_linear(self, linear: Any) -> Any:
        return linear

    def prepare_vector(self, vector: torch.Tensor) -> torch.Tensor:
        return vector

    prepare_embedding = prepare_vector

    def embed(self, table: torch.Tensor, batch: Any) -> torch.Tensor:
        return torch.zeros(1, table.shape[1])

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        self.norms.append(weight)
        return x

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.rms_norm(x, weight)

    def linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        return torch.zeros(1, weight.weight.shape[0])

    gated_linear = linear

    def rope_write(self, qkv: torch.Tensor, batch: Any, layer: int, q_norm: Any, k_norm: Any) -> torch.Tensor:
        return qkv

    def attention(self, q: torch.Tensor, batch: Any, layer: int) -> torch.Tensor:
        self.attended.append(layer)
        return q


BATCH: Any = SimpleNamespace(sample_tokens=[0], last=None)


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    write_random_model(tmp_path, "tiny")
    return dataclasses.replace(read_config(tmp_path), num_layers=5, windows=(0, 24, 0, 24, 0))


def test_a_sketch_computes_before_the_other_layers_are_loaded(model: ModelConfig) -> None:
    ops, loads, fetch = Trace(), [], random_fetch(model)

    def fetched(name: str) -> torch.Tensor | None:
        if name.endswith("down_proj.weight"):
            loads.append(int(name.split(".")[2]))
        return fetch(name)

    def sketched(decoder: Decoder) -> None:
        assert loads == [0, 1, 4]  # the first layer of each kind, and the last one
        logits = decoder.sketch().forward(BATCH)
        assert logits is not None
        assert logits.shape == (1, model.vocab_size)
        assert ops.attended == [0, 1, 4]

    shares: list[float] = []
    decoder = Decoder(model, fetched, ops, shares.append, sketched)
    assert loads == [0, 1, 4, 2, 3]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    ops.attended.clear()
    decoder.forward(BATCH)
    assert ops.attended == [0, 1, 2, 3, 4]


def test_each_layer_is_normalized_for_the_one_after_it(model: ModelConfig) -> None:
    ops, names = Trace(), {}
    plain = random_fetch(model)

    def fetch(name: str) -> torch.Tensor | None:
        tensor = plain(name)
        if tensor is not None and tensor.ndim == 1:
            names[tensor.data_ptr()] = name
        return tensor

    decoder = Decoder(model, fetch, ops)
    decoder.forward(BATCH)
    seen = [names[norm.data_ptr()].removeprefix("model.").removesuffix(".weight") for norm in ops.norms]
    inside = [f"layers.{layer}.{kind}_layernorm" for layer in range(5) for kind in ("input", "post_attention")]
    assert seen == [*inside, "norm"]
