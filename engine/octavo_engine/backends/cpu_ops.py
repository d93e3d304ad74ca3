"""The `torch` backend: oneDNN for matrix products, Numba kernels over the pages for everything else. CPU only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from octavo_kernels import reference
from octavo_kernels.cpu.attention import attention
from octavo_kernels.cpu.rope_write import rope_write
from octavo_kernels.cpu.rows import add_rms_norm, rms_norm, silu_mul

from octavo_engine.backends.cpu_linear import CpuLinear, PackedLinear
from octavo_engine.backends.row_threads import RowThreads
from octavo_engine.batch import Batch, Inputs, Penalties
from octavo_engine.models.config import ModelConfig
from octavo_engine.models.rope import cos_sin_table
from octavo_engine.models.weights import Linear

# Rows that are worth another thread: below, handing work over costs more than the work.
_LEAST_ATTENTION_ROWS = 4
_LEAST_ELEMENTWISE_ROWS = 16


class CpuOps:
    """Operations of the `torch` backend over one page pool [P, L, 2, K, page_size, D]."""

    shared_members = 0  # each row reads its own

    def __init__(
        self, config: ModelConfig, pool: torch.Tensor, *, max_len: int, threads: RowThreads, linear: CpuLinear
    ) -> None:
        self._config = config
        self._dtype = pool.dtype
        self._linear = linear
        self._pool = pool
        self._flat_pool = _flat(pool)
        self._page_size = pool.shape[4]
        self._page_stride = np.int64(pool.stride(0))
        self._threads = threads
        self._cos_sin = cos_sin_table(config.rope, config.head_dim, max_len).numpy().reshape(-1)
        self._eps = np.float32(config.rms_norm_eps)
        self._scale = np.float32(config.head_dim**-0.5)
        heads = {
            "head_dim": config.head_dim,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "page_size": self._page_size,
        }
        self._attend = {window: attention(**heads, window=window) for window in set(config.windows)}
        self._write = rope_write(**heads, qk_norm=config.qk_norm)
        self._rms_norm = rms_norm(size=config.hidden_size)
        self._add_rms_norm = add_rms_norm(size=config.hidden_size)
        self._silu_mul = silu_mul(size=config.intermediate_size)
        self._no_norm = np.zeros(1, np.float32)

    def usual_sizes(self, most_tokens: int) -> list[int]:
        """Return nothing: kernels were compiled when the backend was made."""
        del most_tokens
        return []

    def close(self) -> None:
        """Stop the threads."""
        self._threads.close()

    def prepare_linear(self, linear: Linear) -> PackedLinear:
        """Pack a weight for oneDNN."""
        return self._linear.pack(linear)

    def prepare_vector(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the vector in float32, which norms compute in."""
        return vector.to(torch.float32)

    def prepare_embedding(self, table: torch.Tensor) -> torch.Tensor:
        """Return the table as stored: rows are converted when they are looked up."""
        return table

    def embed(self, table: torch.Tensor, batch: Inputs) -> torch.Tensor:
        """Return [T, hidden]."""
        return table[batch.token_ids].to(self._dtype)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """Return x @ weight.T + bias."""
        return self._linear.apply(x, weight)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the normalized rows."""
        out = torch.empty_like(x)
        self._rms_norm(_flat(x), weight.numpy(), self._eps, 0, len(x), _flat(out))
        return out

    def add_rms_norm(self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add x to residual in place and return the normalized rows."""
        out = torch.empty_like(x)
        source, total, target, factors = _flat(x), _flat(residual), _flat(out), weight.numpy()

        def work(first: int, last: int) -> None:
            self._add_rms_norm(source, total, factors, self._eps, first, last, target)

        self._threads.run(work, len(x), 4 * _LEAST_ELEMENTWISE_ROWS)
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
        q = torch.empty(len(qkv), config.num_heads * config.head_dim, dtype=self._dtype)
        k_offset, v_offset = self._offsets(layer)
        q_weight = self._no_norm if q_norm is None else q_norm.numpy()
        k_weight = self._no_norm if k_norm is None else k_norm.numpy()
        source, target = _flat(qkv), _flat(q)
        positions, slots = batch.positions.numpy(), batch.slots.numpy()

        def work(first: int, last: int) -> None:
            self._write(
                source, positions, slots, self._cos_sin, q_weight, k_weight, self._eps,
                self._flat_pool, k_offset, v_offset, self._page_stride, first, last, target,
            )  # fmt: skip

        self._threads.run(work, len(qkv), 2 * _LEAST_ELEMENTWISE_ROWS)
        return q

    def attention(self, q: torch.Tensor, batch: Inputs, layer: int) -> torch.Tensor:
        """Return the attention output [T, H * D]."""
        out = torch.empty_like(q)
        k_offset, v_offset = self._offsets(layer)
        attend = self._attend[self._config.windows[layer]]
        source, target, tables = _flat(q), _flat(out), batch.block_tables.numpy()
        assert batch.row_of_token is not None  # noqa: S101 - the CPU captures nothing
        rows, positions = batch.row_of_token.numpy(), batch.positions.numpy()

        def work(first: int, last: int) -> None:
            attend(
                source, self._flat_pool, k_offset, v_offset, self._page_stride, tables,
                rows, positions, first, last, self._scale, target,
            )  # fmt: skip

        self._threads.run(work, len(q), _LEAST_ATTENTION_ROWS)
        return out

    def gated_linear(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        """Return silu(gate) * up of [gate | up] = x @ weight.T + bias."""
        gate_up = self.linear(x, weight)
        out = torch.empty(len(gate_up), self._config.intermediate_size, dtype=self._dtype)
        source, target = _flat(gate_up), _flat(out)

        def work(first: int, last: int) -> None:
            self._silu_mul(source, first, last, target)

        self._threads.run(work, len(gate_up), _LEAST_ELEMENTWISE_ROWS)
        return out

    def sample(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and log-probabilities of the sampling rows."""
        ids = torch.empty(len(logits), dtype=torch.int64)
        logprobs = torch.empty(len(logits), dtype=torch.float32)
        columns = (batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seeds, batch.output_positions)
        reference.sample(logits, *columns, ids, logprobs)
        if batch.penalties is not None:
            _sample_penalized(logits, columns, batch.penalties, ids, logprobs)
        return ids, logprobs

    def copy_pages(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy whole pages."""
        for source, destination in copies:
            self._pool[destination] = self._pool[source]

    def _offsets(self, layer: int) -> tuple[np.int64, np.int64]:
        start, step = layer * self._pool.stride(1), self._pool.stride(2)
        return np.int64(start), np.int64(start + step)


def _sample_penalized(
    logits: torch.Tensor,
    columns: tuple[torch.Tensor, ...],
    penalties: Penalties,
    ids: torch.Tensor,
    logprobs: torch.Tensor,
) -> None:
    """Sample the rows with penalties again, and replace what was sampled without them."""
    tallies, frequency, presence, repetition = (
        penalties.tallies, penalties.frequency, penalties.presence, penalties.repetition,
    )  # fmt: skip
    rows = torch.nonzero((frequency != 0) | (presence != 0) | (repetition != 1))[:, 0]
    penalized = torch.empty(len(rows), logits.shape[1], dtype=torch.float32)
    reference.penalize(
        logits[rows], tallies, penalties.slots[rows], frequency[rows], presence[rows], repetition[rows], penalized
    )
    taken, ignored = torch.empty_like(rows), torch.empty(len(rows), dtype=torch.float32)
    temperature, top_k, top_p, min_p, seeds, positions = (column[rows] for column in columns)
    reference.sample(penalized, temperature, top_k, top_p, min_p, seeds, positions, taken, ignored)
    penalized_ids = ids.index_copy(0, rows, taken)
    reference.take_penalized(
        logits, penalized_ids, tallies, penalties.slots, frequency, presence, repetition, ids, logprobs
    )


def _flat(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a contiguous tensor as a flat array; bfloat16 as uint16."""
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    return x.numpy().reshape(-1)
