"""What a router process can be told: `RouterConfig`. `octavo.settings` says where it comes from."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import ClassVar

from octavo.settings import Address, RedisUrl, Settings, check_address, load
from pydantic import ByteSize, Field, field_validator

from octavo_router.fleet import StaticEngine


class RouterConfig(Settings):
    """Configuration of one router process. Addresses are "host:port", times seconds."""

    environment_prefix: ClassVar[str] = "OCTAVO_ROUTER_"

    router_id: str = Field(
        default_factory=lambda: f"router-{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[A-Za-z0-9_.\-]{1,128}$",
        description="name of this process in logs, traces and placement notes",
    )
    listen: Address = Field("127.0.0.1:50051", description="address of the public service")
    admin_listen: Address = Field("127.0.0.1:50052", description="address of the admin service")
    metrics_listen: Address = Field("127.0.0.1:50053", description="address of the Prometheus metrics page")
    reuse_port: bool = Field(False, description="let several router processes share the listen address")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="router processes behind the listen address; admin and metrics ports are two higher for each next one",
    )

    model: str = Field("", description="directory or hub id of the model; default: the prepared default model")
    model_name: str | None = Field(None, description="name that requests use; default: the directory's name")
    engines: str = Field(
        "", description="engines beside those in Redis: host:port or id=host:port, with commas between"
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="redis://user:password@host:port/db, or rediss://, unix://, sentinel://, sentinels://; "
        "without it only `engines` are used",
    )

    default_max_tokens: int = Field(
        0, ge=0, description="output tokens of a request that gives no limit; 0: as many as the model's context leaves"
    )
    default_timeout_s: float = Field(600.0, gt=0, le=86_400, description="deadline of a request that gives none")
    max_timeout_s: float = Field(3600.0, gt=0, le=86_400, description="longest deadline of a request")
    max_prompt_bytes: int = Field(4 << 20, ge=1, le=1 << 30, description="most bytes of text in one request")
    max_in_flight: int = Field(
        4096, ge=1, le=1 << 20, description="requests at once, waiting or running; beyond, they are rejected"
    )
    max_queued_tokens: int = Field(
        1 << 20,
        ge=1,
        le=1 << 40,
        description="expected tokens of requests that wait for their turn; beyond, the tenant who has most there gives way",
    )
    tenant_max_queued_tokens: int = Field(
        0,
        ge=0,
        le=1 << 40,
        description="the same of one tenant; beyond, its requests are rejected; 0: no limit of its own",
    )
    max_tokens_in_flight: int = Field(
        0,
        ge=0,
        le=1 << 40,
        description="expected tokens of requests that had their turn; beyond, others wait; 0: as the engines' load allows",
    )
    tenant_max_tokens_in_flight: int = Field(
        0, ge=0, le=1 << 40, description="the same of one tenant; 0: no limit of its own"
    )
    max_queue_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="longest wait of an interactive request for its turn; longer ones are rejected",
    )
    engine_queue_s: float = Field(
        0.15, gt=0, le=60, description="prefill work that may wait at each engine; the rest waits here, in fair order"
    )
    fair_quantum_tokens: int = Field(
        1024, ge=1, le=1 << 20, description="tokens that a tenant gets in its turn while others wait"
    )
    batch_share: float = Field(
        0.1, ge=0, le=0.5, description="share of the turns that batch requests have while interactive ones wait"
    )
    max_tenants: int = Field(
        1024, ge=1, le=1 << 20, description="tenants told apart at once; further ones share the turns of one"
    )
    max_ahead_tokens: int = Field(
        1024, ge=16, le=1 << 20, description="output tokens of a choice that an engine may be ahead of a slow client"
    )
    max_moves: int = Field(2, ge=0, le=16, description="engines that one request may lose before it ends with an error")
    move_wait_s: float = Field(
        10.0, ge=0, le=3600, description="time that a request without an engine waits for another one"
    )
    tokenizer_threads: int = Field(2, ge=1, le=256, description="threads that encode long prompts")
    tokenizer_cache: ByteSize = Field(
        ByteSize(64 << 20), ge=0, description="memory for the token ids of texts seen before, such as 64MiB; 0: none"
    )

    @field_validator("engines", mode="before")
    @classmethod
    def _join_engines(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, value: str) -> str:
        for engine in _static_engines(value):
            check_address(engine.address)
        return value

    @property
    def static_engines(self) -> list[StaticEngine]:
        """Engines named by `engines`."""
        return _static_engines(self.engines)


def load_config(arguments: Sequence[str], environ: Mapping[str, str]) -> RouterConfig:
    """Return the configuration that flags, environment and file give. Raises as `octavo.settings.load` does."""
    return load(
        RouterConfig,
        program="octavo-router",
        description="Send each request to the engine that holds its prefix.",
        arguments=arguments,
        environ=environ,
    )


def _static_engines(value: str) -> list[StaticEngine]:
    engines = []
    for entry in filter(None, (part.strip() for part in value.split(","))):
        name, separator, address = entry.rpartition("=")
        engines.append(StaticEngine(address=address, engine_id=name if separator else None))
    return engines
