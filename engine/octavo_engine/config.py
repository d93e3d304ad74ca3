"""What an engine process can be told: `EngineConfig`. `octavo.settings` says where it comes from."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal, Self

from octavo.settings import Address, RedisUrl, Settings, load
from pydantic import ByteSize, Field, model_validator

from octavo_engine.budget import StepBudget

_GPU_GRANULE: Final = 256  # two row tiles of the matrix products
# Llama-8B with 256 sequences: a whole prompt of 1024 tokens fits into each step, or the prompts could not keep up.
_GPU_PREFILL_SHARE: Final = 2.0


class EngineConfig(Settings):
    """Configuration of one engine process. Addresses are "host:port"."""

    environment_prefix: ClassVar[str] = "OCTAVO_ENGINE_"

    model: str | None = Field(
        None, description="directory of a Hugging Face model, or its hub id; default: the prepared default model"
    )
    model_name: str | None = Field(None, description="name that requests use; default: the directory's name")
    engine_id: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[A-Za-z0-9_.\-]{1,64}$",
        description="stable name, unique in the fleet",
    )

    listen: Address = Field("127.0.0.1:7100", description="address of the engine service")
    advertise: Address | None = Field(None, description="address that routers dial; default: the bound listen address")
    admin_listen: Address = Field("127.0.0.1:7101", description="address of the admin service")
    metrics_listen: Address = Field("127.0.0.1:7102", description="address of the Prometheus metrics page")

    vllm_service: bool = Field(
        False,
        description="also serve vllm.grpc.engine.VllmEngine, which the gateway smg drives; needs octavo-serve[smg]",
    )

    redis_url: RedisUrl | None = Field(
        None,
        description="redis://user:password@host:port/db, or rediss://, unix://, sentinel://, sentinels://; "
        "without it the engine announces itself nowhere",
    )

    backend: Literal["auto", "torch", "triton"] = Field("auto", description="what runs the model")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="type of weights and pages")
    numerics: Literal["auto", "exact", "fast"] = Field(
        "auto", description="exact: the same request gives the same tokens in any batch"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the model; default: all cores")

    page_size: int = Field(16, ge=1, le=1024, description="tokens in one page")
    num_pages: int | None = Field(None, ge=2, description="pages in the pool; default: what kv_memory holds")
    kv_memory: ByteSize | None = Field(
        None,
        description="memory of the page pool, such as 2GiB; default: what weights and a tenth for computing leave of a GPU; on a CPU a tenth of what is free, at most 1GiB",
    )
    max_model_len: int | None = Field(None, ge=2, description="longest prompt + output; default: the model's own limit")

    max_step_tokens: int | None = Field(
        None, ge=1, le=1 << 20, description="most tokens computed in one step; default: 8192 on a GPU, 256 on a CPU"
    )
    max_sequences: int | None = Field(
        None, ge=1, le=1 << 16, description="most sequences in one step; default: 512 on a GPU, 256 on a CPU"
    )
    itl_target_ms: float | None = Field(
        None,
        ge=0,
        le=60_000,
        description="gap between tokens that steps with prompts aim at; many decodes make it longer; 0: no target; default: 30 on a GPU, 250 on a CPU",
    )
    watermark: float = Field(0.03, ge=0, le=0.9, description="share of pages kept free at admission")
    prefix_caching: bool = Field(True, description="reuse the pages of equal prefixes between requests")

    max_waiting: int = Field(1024, ge=1, description="requests that may wait for admission; beyond, they are rejected")
    max_waiting_tokens: int = Field(1 << 20, ge=1, description="prompt tokens that may wait for admission")
    stall_s: float = Field(30.0, gt=0, le=86_400, description="a step longer than this makes the engine not ready")

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.num_pages is not None and self.kv_memory is not None:
            raise ValueError("num_pages and kv_memory both size the page pool; give one")
        return self

    def step_tokens(self, device: str) -> int:
        """Return `max_step_tokens`, or its default for a device: a CPU step must not outlast a router's patience."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return 256 if device == "cpu" else 8192

    def sequences(self, device: str) -> int:
        """Return `max_sequences`, or its default for a device."""
        if self.max_sequences is not None:
            return self.max_sequences
        return 256 if device == "cpu" else 512

    def itl_target_s(self, device: str) -> float | None:
        """Return the target for the gap between tokens in seconds, or None for no target."""
        milliseconds = self.itl_target_ms
        if milliseconds is None:
            milliseconds = 250.0 if device == "cpu" else 30.0
        return milliseconds / 1000 or None

    def step_budget(self, device: str) -> StepBudget:
        """Return what decides about the tokens of a step on a device."""
        max_step_tokens = self.step_tokens(device)
        is_gpu = device != "cpu"
        return StepBudget(
            max_step_tokens=max_step_tokens,
            itl_target_s=self.itl_target_s(device),
            enough_tokens=max_step_tokens // 2 if is_gpu else None,
            granule=_GPU_GRANULE if is_gpu else 1,
            prefill_share=_GPU_PREFILL_SHARE if is_gpu else 1.0,
        )


def load_config(arguments: Sequence[str], environ: Mapping[str, str]) -> EngineConfig:
    """Return the configuration that flags, environment and file give. Raises as `octavo.settings.load` does."""
    return load(
        EngineConfig,
        program="octavo-engine",
        description="Serve one model to routers.",
        arguments=arguments,
        environ=environ,
    )
