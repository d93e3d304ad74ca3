"""The `triton` backend: Triton kernels over the pages. CUDA, or the interpreter in tests."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from octavo_kernels.activation import silu_mul
from octavo_kernels.copy_pages import copy_pages
from octavo_kernels.decode_attention import decode_workspace_size, most_members, paged_decode
from octavo_kernels.extend_attention import paged_extend
from octavo_kernels.heuristics import CHUNK, exact_span, fast_chunk
from octavo_kernels.matmul import matmul, matmul_silu, sizes_of_all_forms
from octavo_kernels.norm import add_rmsnorm, rmsnorm
from octavo_kernels.penalties import penalize, take_penalized
from octavo_kernels.rope_write import rope_qknorm_write
from octavo_kernels.sampling import sample, sample_workspace_size

from octavo_engine.batch import Batch, Chunks, Inputs, widest_table
from octavo_engine.models.config import ModelConfig
from octavo_engine.models.rope import cos_sin_table
from octavo_engine.models.weights import Linear


def workspace_bytes(config: ModelConfig, page_size: int, *, max_len: int, max_sequences: int) -> int:
    """Return what attention and sampling keep between their kernels, in fp32; arguments as of `TritonOps`."""
    widest = widest_table(max_len, page_size) * page_size
    sizes = (
        decode_workspace_size(max_sequences, config.num_heads, config.head_dim, widest),
        sample_workspace_size(max_sequences, config.vocab_size),
    )
    return max(sizes) * torch.float32.itemsize


class TritonOps:
    """Operations of the `triton` backend.

    Args:
        config: the model's shape.
        pool: pages [P, L, 2, K, page_size, D].
        max_len: most tokens of a sequence.
        max_sequences: most rows of one step that sample, and most decodes, both with padding.
        exact: a row's bits must not depend on the other rows.
    """

    def __init__(
        self, config: ModelConfig, pool: torch.Tensor, *, max_len: int, max_sequences: int, exact: bool
    ) -> None:
        self._exact = exact
        self._max_sequences = max_sequences
        self._config = config
        self._pool = pool
        self._dtype, self._device = pool.dtype, pool.device
        self._cos_sin = cos_sin_table(config.rope, config.head_dim, max_len).to(self._device)
        self._scale = config.head_dim**-0.5
        self._on_cpu = _cpu_products(pool) if pool.device.type == "cpu" else None
        size = workspace_bytes(config, pool.shape[4], max_len=max_len, max_sequences=max_sequences)
        self._workspace = torch.empty(size, dtype=torch.uint8, device=self._device).view(torch.float32)
        self._side: torch.cuda.Stream | None = None
        self._tickets = torch.zeros(max_sequences * config.num_kv_heads, dtype=torch.int32, device=self._device)

    def prepare_linear(self, linear: Linear) -> Any:
        """Bring a weight to the device."""
        if self._on_cpu is not None:
            return self._on_cpu.pack(linear)
        bias = None if linear.bias is None else linear.bias.to(self._device, self._dtype)
        return Linear(weight=linear.weight.to(self._device, self._dtype), bias=bias)

    def prepare_vector(self, vector: torch.Tensor) -> torch.Tensor:
        """Bring a norm's weight to the device."""
        return vector.to(self._device, self._dtype)

    def prepare_embedding(self, table: torch.Tensor) -> torch.Tensor:
        """Bring the embedding table to the device."""
        return table.to(self._device, self._dtype)

    def embed(self, table: torch.Tensor, batch: Inputs) -> torch.Tensor:
        """Return [T, hidden]."""
        return table[batch.token_ids]

    def linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return x @ weight.T + bias."""
        if self._on_cpu is not None:
            product: torch.Tensor = self._on_cpu.apply(x, weight)
            return product
        out = torch.empty(len(x), len(weight.weight), dtype=self._dtype, device=self._device)
        matmul(x, weight.weight, weight.bias, out, exact=self._exact)
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the normalized rows."""
        out = torch.empty_like(x)
        rmsnorm(x, weight, out, self._config.rms_norm_eps)
        return out

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add x to residual in place and return the normalized rows."""
        out = torch.empty_like(x)
        add_rmsnorm(x, residual, weight, out, self._config.rms_norm_eps)
        return out

    def rope_write(
        self,
        qkv: torch.Tensor,
        batch: Inputs,
        layer: int,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
    ) -> torch.Tensor:
        """Rotate, write keys and values, return q [T, H * D]."""
        config = self._config
        q = torch.empty(len(qkv), config.num_heads, config.head_dim, dtype=self._dtype, device=self._device)
        rope_qknorm_write(
            qkv, batch.positions, batch.slots, self._cos_sin, self._pool[:, layer, 0], self._pool[:, layer, 1],
            q, q_norm, k_norm, config.rms_norm_eps,
        )  # fmt: skip
        return q.view(len(qkv), -1)

    def attention(self, q: torch.Tensor, batch: Inputs, layer: int) -> torch.Tensor:
        """Return [T, H * D]: single-token rows by the decode kernel, chunks by the extend kernel.

        A captured step that has both computes them side by side: one is bound by memory, the other by arithmetic.
        """
        heads = q.view(-1, self._config.num_heads, self._config.head_dim)
        out = torch.empty_like(heads)
        side = self._side_stream() if batch.num_decodes and batch.chunks is not None else None
        if side is not None:
            side.wait_stream(torch.cuda.current_stream())
        if batch.chunks is not None:
            with nullcontext() if side is None else torch.cuda.stream(side):
                self._extend(heads, batch, batch.chunks, layer, out)
        if batch.num_decodes:
            self._decode(heads, batch, layer, out)
        if side is not None:
            torch.cuda.current_stream().wait_stream(side)
        return out.view(len(q), -1)

    def _decode(self, heads: torch.Tensor, batch: Inputs, layer: int, out: torch.Tensor) -> None:
        config, split = self._config, batch.num_decodes
        window = config.windows[layer]
        shared = batch.shared if window == 0 else None
        programs, chunk = split * config.num_kv_heads, CHUNK if shared else self._decode_chunk(split)
        paged_decode(
            heads[:split], self._pool[:, layer, 0], self._pool[:, layer, 1], batch.block_tables[:split],
            batch.context_lens[:split], out[:split], self._workspace, scale=self._scale, window=window,
            exact=self._exact or shared is not None, chunk=chunk, plan=shared,
            tickets=self._tickets[:programs] if chunk > CHUNK else None,
            span=exact_span(programs) if self._exact else 1,
        )  # fmt: skip

    def _extend(self, heads: torch.Tensor, batch: Inputs, chunks: Chunks, layer: int, out: torch.Tensor) -> None:
        paged_extend(
            heads, self._pool[:, layer, 0], self._pool[:, layer, 1], chunks.block_tables, chunks.query_start,
            chunks.context_lens, out, scale=self._scale, window=self._config.windows[layer],
            max_q_len=batch.max_query_len, exact=self._exact,
        )  # fmt: skip

    def _side_stream(self) -> torch.cuda.Stream | None:
        """Return a stream beside the current one while that is captured: launched one by one, nothing would overlap."""
        if self._device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return None
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._side

    def _decode_chunk(self, num_rows: int) -> int:
        """Return the tokens that one program of a decode reads: fewer where few rows would leave the device idle.

        Exact results depend on it, so there it is the same for all.
        """
        if self._exact or self._device.type == "cpu":
            return CHUNK
        chunk = fast_chunk(num_rows * self._config.num_kv_heads)
        # The workspace is made for the largest batch at the usual length.
        return chunk if num_rows * CHUNK <= chunk * self._max_sequences else CHUNK

    def gated_linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return silu(gate) * up of [gate | up] = x @ weight.T + bias."""
        out = torch.empty(len(x), self._config.intermediate_size, dtype=self._dtype, device=self._device)
        if self._on_cpu is not None:
            silu_mul(self._on_cpu.apply(x, weight), out)
        else:
            matmul_silu(x, weight.weight, weight.bias, None, out, exact=self._exact)
        return out

    def sample(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and log-probabilities of the sampling rows.

        A step with penalties samples twice. Rows without any must have the bits that they have in a step of their own,
        where kernels read logits of another type; and log-probabilities are those of the logits without penalties.
        """
        ids, logprobs = self._sample(logits, batch)
        penalties = batch.penalties
        if penalties is not None:
            columns = (
                penalties.tallies, penalties.slots, penalties.frequency, penalties.presence, penalties.repetition,
            )  # fmt: skip
            penalized = torch.empty(logits.shape, dtype=torch.float32, device=self._device)
            penalize(logits, *columns, penalized)
            penalized_ids, _ = self._sample(penalized, batch)
            take_penalized(logits, penalized_ids, *columns, ids, logprobs)
        return ids, logprobs

    def _sample(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.empty(len(logits), dtype=torch.int64, device=self._device)
        logprobs = torch.empty(len(logits), dtype=torch.float32, device=self._device)
        sample(
            logits, batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seeds, batch.output_positions,
            ids, logprobs, self._workspace,
        )  # fmt: skip
        return ids, logprobs

    def copy_pages(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy whole pages."""
        count = len(copies)
        pairs = torch.zeros(2, -(-count // 4) * 4, dtype=torch.int32)  # both rows aligned alike
        pairs[:, :count] = torch.tensor(copies, dtype=torch.int32).T
        if self._device.type == "cuda":
            pairs = pairs.pin_memory().to(self._device, non_blocking=True)
        copy_pages(self._pool, pairs[0, :count], pairs[1, :count])

    @property
    def shared_members(self) -> int:
        """Most rows of a step of decodes that may read a prefix together; 0: each reads its own."""
        config = self._config
        if any(config.windows):
            return 0
        group = config.num_heads // config.num_kv_heads
        members = most_members(config.head_dim, group, self._dtype, self._pool.shape[4])
        return members if members > 1 else 0

    def usual_sizes(self, most_tokens: int) -> list[int]:
        """Return numbers of tokens whose steps between them load every kernel of the products."""
        config = self._config
        hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim
        shapes = [
            (heads + 2 * config.num_kv_heads * config.head_dim, hidden, False),
            (hidden, heads, False),
            (2 * inner, hidden, True),
            (hidden, inner, False),
        ]
        return sizes_of_all_forms(shapes, self._dtype, most_tokens, self._device, exact=self._exact)

    def close(self) -> None:
        """Nothing to give back."""


def _cpu_products(pool: torch.Tensor) -> Any:
    # Interpreted kernels compute on the CPU; products there must not see their neighbours either. (Numba is not needed
    # on a GPU, and takes long to import.)
    from octavo_engine.backends.cpu_linear import CpuLinear  # noqa: PLC0415
    from octavo_engine.backends.row_threads import RowThreads  # noqa: PLC0415

    return CpuLinear(pool.dtype, exact=True, tiles=True, threads=RowThreads(1))
