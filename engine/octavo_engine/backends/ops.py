"""The operations that a forward pass is made of. A backend implements them; the model code knows nothing else of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from octavo_engine.batch import Batch, Inputs
from octavo_engine.models.weights import Linear


class NotExact(Exception):
    """This machine's matrix products depend on the number of rows; `exact` numerics cannot be had."""


PreparedLinear = Any
"""A weight as the backend wants it: packed, laid out, on the device."""


class Ops(Protocol):
    """Operations on T tokens, all in the model's dtype. Every result is a new tensor unless said otherwise."""

    def prepare_linear(self, linear: Linear) -> PreparedLinear:
        """Lay a weight out for `linear`; called once per weight."""
        ...

    def prepare_vector(self, vector: torch.Tensor) -> torch.Tensor:
        """Bring a norm's weight to the device, in the type that norms read."""
        ...

    def prepare_embedding(self, table: torch.Tensor) -> torch.Tensor:
        """Bring the embedding table [vocab, hidden] to the device."""
        ...

    def embed(self, table: torch.Tensor, batch: Inputs) -> torch.Tensor:
        """Return the embeddings [T, hidden] of the batch's tokens."""
        ...

    def linear(self, x: torch.Tensor, weight: PreparedLinear) -> torch.Tensor:
        """Return x [T, in] @ weight.T (+ bias): [T, out]."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the normalized rows of x [T, hidden]."""
        ...

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add x to residual in place; return the normalized rows of the sum, [T, hidden]."""
        ...

    def rope_write(
        self,
        qkv: torch.Tensor,
        batch: Inputs,
        layer: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
    ) -> torch.Tensor:
        """Split and rotate qkv [T, (H + 2K) * D], write k and v into the layer's pages, return q [T, H * D]."""
        ...

    def attention(self, q: torch.Tensor, batch: Inputs, layer: int) -> torch.Tensor:
        """Return the attention output [T, H * D] of q over the pages of each token's sequence."""
        ...

    def gated_linear(self, x: torch.Tensor, weight: PreparedLinear) -> torch.Tensor:
        """Return silu(gate) * up of [gate | up] = x [T, in] @ weight.T (+ bias): [T, F]."""
        ...

    def sample(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids [B] int64 and log-probabilities [B] float32 for the sampling rows' logits [B, vocab]."""
        ...

    def copy_pages(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy whole pages (source, destination) within the pool."""
        ...

    @property
    def shared_members(self) -> int:
        """Most rows of a step of decodes that may read a prefix together; 0: each reads its own."""
        ...

    def usual_sizes(self, most_tokens: int) -> list[int]:
        """Return numbers of tokens whose steps between them load every kernel; none if kernels are ready at once."""
        ...

    def close(self) -> None:
        """Give threads and memory back."""
        ...
