"""What a router process can be told: `RouterConfig`. `octavo.settings` says where it comes from."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import ClassVar

from octavo.settings import Address, RedisUrl, Settings, check_address, load
from pydantic import Field, field_validator

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

    model: str = Field("", description="directory or hub id of the model; default: the prepared default model")
    model_name: str | None = Field(None, description="name that requests use; default: the directory's name")
    engines: str = Field(
        "", description="engines beside those in Redis: host:port or id=host:port, with commas between"
    )
    redis_url: RedisUrl | None = Field(None, description="redis://host:port/db; without it only `engines` are used")

    default_max_tokens: int = Field(
        0, ge=0, description="output tokens of a request that gives no limit; 0: as many as the model's context leaves"
    )
    default_timeout_s: float = Field(600.0, gt=0, le=86_400, description="deadline of a request that gives none")
    max_timeout_s: float = Field(3600.0, gt=0, le=86_400, description="longest deadline of a request")
    max_prompt_bytes: int = Field(4 << 20, ge=1, le=1 << 30, description="most bytes of text in one request")
    max_in_flight: int = Field(1024, ge=1, le=1 << 20, description="requests at once; beyond, they are rejected")
    max_ahead_tokens: int = Field(
        1024, ge=16, le=1 << 20, description="output tokens of a choice that an engine may be ahead of a slow client"
    )
    max_moves: int = Field(2, ge=0, le=16, description="engines that one request may lose before it ends with an error")
    move_wait_s: float = Field(
        10.0, ge=0, le=3600, description="time that a request without an engine waits for another one"
    )
    tokenizer_threads: int = Field(2, ge=1, le=256, description="threads that encode long prompts")

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
