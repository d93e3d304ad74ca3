"""What an engine process can be told, from flags, environment and an optional file: `EngineConfig`.

Flags (`--max-sequences 64`), environment (`OCTAVO_ENGINE_MAX_SEQUENCES=64`) and a TOML file (`max_sequences = 64`, named by
`--config` or `OCTAVO_ENGINE_CONFIG`) have the same names; a flag wins over the environment, which wins over the file. A
key that does not exist is refused: a misspelt limit must not silently become the default.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX: Final = "OCTAVO_ENGINE_"
OTEL_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXIT_CONFIG: Final = 78
"""Exit status of a process whose configuration is wrong (sysexits EX_CONFIG): a restart would not help."""

_ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})$")


class ConfigError(Exception):
    """The configuration is wrong. `problems` are lines of the form "source:key: reason"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _address(value: str) -> str:
    match = _ADDRESS.match(value)
    if match is None or int(match.group(2)) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:7100; port 0 picks a free one")
    return value


class EngineConfig(BaseSettings):
    """Configuration of one engine process. Addresses are "host:port"."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        validate_default=True,
    )

    model: str | None = Field(
        None, description="directory of a Hugging Face model, or its hub id; default: the prepared default model"
    )
    model_name: str | None = Field(None, description="name that requests use; default: the directory's name")
    engine_id: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[A-Za-z0-9_.\-]{1,64}$",
        description="stable name, unique in the fleet",
    )

    listen: str = Field("127.0.0.1:7100", description="address of the engine service")
    advertise: str | None = Field(None, description="address that routers dial; default: the bound listen address")
    admin_listen: str = Field("127.0.0.1:7101", description="address of the admin service")
    metrics_listen: str = Field("127.0.0.1:7102", description="address of the Prometheus metrics page")
    ready_file: Path | None = Field(None, description="JSON with the bound addresses, written when the engine serves")
    exit_with_stdin: bool = Field(False, description="stop when standard input ends")

    redis_url: str | None = Field(
        None, description="redis://host:port/db; without it the engine announces itself nowhere"
    )
    redis_prefix: str = Field("octavo:", description="prefix of every key in Redis")

    backend: Literal["auto", "torch", "triton"] = Field("auto", description="what runs the model")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where it runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="type of weights and pages")
    numerics: Literal["auto", "exact", "fast"] = Field(
        "auto", description="exact: the same request gives the same tokens in any batch"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the model; default: all cores")

    page_size: int = Field(16, ge=1, le=1024, description="tokens in one page")
    num_pages: int | None = Field(None, ge=2, description="pages in the pool; default: what kv_memory holds")
    kv_memory: ByteSize | None = Field(None, description="memory of the page pool, such as 2GiB; default: what is free")
    max_model_len: int | None = Field(None, ge=2, description="longest prompt + output; default: the model's own limit")

    max_step_tokens: int | None = Field(
        None, ge=1, le=1 << 20, description="most tokens computed in one step; default: 2048 on a GPU, 256 on a CPU"
    )
    max_sequences: int = Field(256, ge=1, le=1 << 16, description="most sequences in one step")
    itl_target_ms: float | None = Field(
        None,
        ge=0,
        le=60_000,
        description="gap between tokens that prefill may stretch a step to; 0: no target; default: 50 on a GPU, 250 on a CPU",
    )
    watermark: float = Field(0.03, ge=0, le=0.9, description="share of pages kept free at admission")

    max_waiting: int = Field(1024, ge=1, description="requests that may wait for admission; beyond, they are rejected")
    max_waiting_tokens: int = Field(1 << 20, ge=1, description="prompt tokens that may wait for admission")
    drain_grace_s: float = Field(30.0, ge=0, le=86_400, description="time that running requests get when draining")
    stall_s: float = Field(30.0, gt=0, le=86_400, description="a step longer than this makes the engine not ready")

    otlp_endpoint: str | None = Field(
        None,
        description="OTLP/gRPC endpoint for traces; default: OTEL_EXPORTER_OTLP_ENDPOINT, else none",
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="share of new traces recorded")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")
    log_form: Literal["auto", "json", "console"] = Field("auto", description="form of log lines")

    _check_addresses = field_validator("listen", "admin_listen", "metrics_listen")(_address)

    @field_validator("advertise")
    @classmethod
    def _check_advertise(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.num_pages is not None and self.kv_memory is not None:
            raise ValueError("num_pages and kv_memory both size the page pool; give one")
        return self

    def step_tokens(self, device: str) -> int:
        """Return `max_step_tokens`, or its default for a device: a CPU step must not outlast a router's patience."""
        if self.max_step_tokens is not None:
            return self.max_step_tokens
        return 256 if device == "cpu" else 2048

    def itl_target_s(self, device: str) -> float | None:
        """Return the target for the gap between tokens in seconds, or None for no target."""
        milliseconds = self.itl_target_ms
        if milliseconds is None:
            milliseconds = 250.0 if device == "cpu" else 50.0
        return milliseconds / 1000 or None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but what the caller gives: `load_config` joins flags, environment and file."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of a checked address."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def load_config(arguments: Sequence[str], environ: Mapping[str, str]) -> EngineConfig:
    """Join flags, environment and file into a configuration.

    Raises:
        ConfigError: a key is unknown, a value is wrong, or the file cannot be read.
        SystemExit: `--help` was asked for.
    """
    flags = _from_flags(arguments)
    environment = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and value  # an empty variable is one that a compose file left unset
    }
    path = flags.pop("config", None) or environment.pop("config", None)
    file = _from_file(Path(path)) if path else {}
    if environ.get(OTEL_ENDPOINT):
        file.setdefault("otlp_endpoint", environ[OTEL_ENDPOINT])
    origin: dict[str, str] = {}
    origin |= {key: f"{path}:{key}" for key in file}
    origin |= {key: f"environment:{ENV_PREFIX}{key.upper()}" for key in environment}
    origin |= {key: f"flag:--{key.replace('_', '-')}" for key in flags}
    try:
        return EngineConfig(**(file | environment | flags))
    except ValidationError as error:
        raise ConfigError([_problem(origin, details) for details in error.errors()]) from error


def _problem(origin: Mapping[str, str], details: Mapping[str, Any]) -> str:
    key = str(details["loc"][0]) if details["loc"] else "configuration"
    reason = "no such setting" if details["type"] == "extra_forbidden" else details["msg"].removeprefix("Value error, ")
    return f"{origin.get(key, key)}: {reason}"


def _from_flags(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="octavo-engine", description="Serve one model to routers.", exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below, in snake_case")
    for name, field in EngineConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=field.description)
        else:
            parser.add_argument(flag, metavar="VALUE", help=_help(field))
    try:
        known, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError([f"flag:{error.argument_name}: {error.message}"]) from error
    if unknown:
        raise ConfigError([f"flag:{flag}: no such setting" for flag in unknown if flag.startswith("-")] or unknown)
    return {name: value for name, value in vars(known).items() if value is not None}


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        text += f" ({', '.join(choices)})"
    if field.default is not None and not field.is_required() and field.default_factory is None:
        text += f" (default: {field.default})"
    return text


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
