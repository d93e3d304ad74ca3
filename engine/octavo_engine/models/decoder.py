"""The forward pass of Llama, Mistral, Qwen2 and Qwen3: one function over a batch, the same for every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from octavo_engine.backends.ops import Ops, PreparedLinear
from octavo_engine.batch import Batch, Inputs
from octavo_engine.models.config import ModelConfig
from octavo_engine.models.weights import Fetch, LayerWeights, Linear, load_layer, load_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    input_norm: torch.Tensor
    qkv: PreparedLinear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: PreparedLinear
    post_norm: torch.Tensor
    gate_up: PreparedLinear
    down: PreparedLinear


class Decoder:
    """A decoder whose weights a backend has prepared.

    Args:
        config: the model's shape.
        fetch: gives tensors by name.
        ops: the backend.
        progress: is told the share of layers that are loaded.
        sketched: is called with this decoder as soon as its `sketch` can compute; the other layers come after.
    """

    def __init__(
        self,
        config: ModelConfig,
        fetch: Fetch,
        ops: Ops,
        progress: Callable[[float], None] | None = None,
        sketched: Callable[[Decoder], None] | None = None,
    ) -> None:
        self.config = config
        self._ops = ops
        weights = load_weights(config, fetch)
        self._embedding = ops.prepare_embedding(weights.embedding)
        head = weights.embedding if weights.lm_head is None else weights.lm_head
        self._lm_head = ops.prepare_linear(Linear(weight=head))
        self._final_norm = ops.prepare_vector(weights.final_norm)
        self._order: Sequence[int] = range(config.num_layers)  # layers that a pass goes through; 0 is the first of them
        self._layers: dict[int, _Layer] = {}
        first = self.sketch()._order  # noqa: SLF001 - of this class
        for index in (*first, *(index for index in self._order if index not in first)):
            self._layers[index] = self._prepare(load_layer(config, fetch, index))
            if progress is not None:
                progress(len(self._layers) / config.num_layers)
            if sketched is not None and len(self._layers) == len(first):
                sketched(self)

    def sketch(self) -> Decoder:
        """Return this decoder cut down to its first layer of each kind and its last one, with the same weights.

        What it computes means nothing, but it launches every kernel that a pass through all layers launches.
        """
        windows = self.config.windows
        sketch = copy.copy(self)
        first = {windows.index(window) for window in set(windows)}
        sketch._order = sorted(first | {self.config.num_layers - 1})  # noqa: SLF001 - of this class
        return sketch

    def _prepare(self, layer: LayerWeights) -> _Layer:
        ops = self._ops
        return _Layer(
            input_norm=ops.prepare_vector(layer.input_norm),
            qkv=ops.prepare_linear(layer.qkv),
            q_norm=None if layer.q_norm is None else ops.prepare_vector(layer.q_norm),
            k_norm=None if layer.k_norm is None else ops.prepare_vector(layer.k_norm),
            output=ops.prepare_linear(layer.output),
            post_norm=ops.prepare_vector(layer.post_norm),
            gate_up=ops.prepare_linear(layer.gate_up),
            down=ops.prepare_linear(layer.down),
        )

    def forward(self, batch: Batch) -> torch.Tensor | None:
        """Compute a batch: write its keys and values, return the logits [B, vocab] of its sampling tokens.

        Returns None if no token of the batch samples (chunks of unfinished prompts).
        """
        q, residual = self.body(batch)
        if not len(batch.sample_tokens):
            return None  # the last layer's keys and values are written: nothing else of it is needed
        if batch.last is None:
            return self.finish(batch, q, residual)
        return self.finish(batch.last, q[batch.sample_tokens], residual[batch.sample_tokens])

    def body(self, batch: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a batch up to the last layer's attention: every key and value is written then.

        Returns:
            The last layer's queries [T, H * D], and the residual stream [T, hidden].
        """
        ops = self._ops
        residual = ops.embed(self._embedding, batch)
        x = ops.rms_norm(residual, self._layers[0].input_norm)
        q = self._queries(x, batch, 0)
        for index, following in pairwise(self._order):
            x = self._attend(q, residual, batch, index, self._layers[following].input_norm)
            q = self._queries(x, batch, following)
        return q, residual

    def finish(self, rows: Inputs, q: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, vocab] of rows whose last queries and residual stream are given; overwrites the latter."""
        x = self._attend(q, residual, rows, self._order[-1], self._final_norm)
        return self._ops.linear(x, self._lm_head)

    def _queries(self, x: torch.Tensor, batch: Inputs, index: int) -> torch.Tensor:
        """Write a layer's keys and values; return its queries [T, H * D]."""
        layer = self._layers[index]
        return self._ops.rope_write(self._ops.linear(x, layer.qkv), batch, index, layer.q_norm, layer.k_norm)

    def _attend(
        self, q: torch.Tensor, residual: torch.Tensor, batch: Inputs, index: int, norm: torch.Tensor
    ) -> torch.Tensor:
        """Compute the rest of a layer from its queries; return [T, hidden], normalized by what comes next."""
        ops, layer = self._ops, self._layers[index]
        x = ops.attention(q, batch, index)
        x = ops.add_rms_norm(ops.linear(x, layer.output), residual, layer.post_norm)
        x = ops.linear(ops.gated_linear(x, layer.gate_up), layer.down)
        return ops.add_rms_norm(x, residual, norm)
