"""What a router process can be told, from flags, environment and an optional file: `RouterConfig`.

Flags (`--max-in-flight 64`), environment (`OCTAVO_ROUTER_MAX_IN_FLIGHT=64`) and a TOML file (`max_in_flight = 64`, named by
`--config` or `OCTAVO_ROUTER_CONFIG`) have the same names; a flag wins over the environment, which wins over the file. A
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
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from octavo_router.fleet import StaticEngine

ENV_PREFIX: Final = "OCTAVO_ROUTER_"
EXIT_CONFIG: Final = 78
"""Exit status of a process whose configuration is wrong (sysexits EX_CONFIG): a restart would not help."""

_OTEL_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]=,]+):(\d{1,5})")


class ConfigError(Exception):
    """The configuration is wrong. `problems` are lines of the form "source:key: reason"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match.group(2)) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:50051; port 0 picks a free one")
    return value


_Address = Annotated[str, AfterValidator(_address)]


class RouterConfig(BaseSettings):
    """Configuration of one router process. Addresses are "host:port", times seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, protected_namespaces=(), validate_default=True
    )

    router_id: str = Field(
        default_factory=lambda: f"router-{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[A-Za-z0-9_.\-]{1,128}$",
        description="name of this process in logs, traces and placement notes",
    )
    listen: _Address = Field("127.0.0.1:50051", description="address of the public service")
    admin_listen: _Address = Field("127.0.0.1:50052", description="address of the admin service")
    metrics_listen: _Address = Field("127.0.0.1:50053", description="address of the Prometheus metrics page")
    reuse_port: bool = Field(False, description="let several router processes share the listen address")
    ready_file: Path | None = Field(None, description="JSON with the bound addresses, written when the router serves")
    exit_with_stdin: bool = Field(False, description="stop when standard input ends")

    model: str = Field("", description="directory or hub id of the model; default: the prepared default model")
    model_name: str | None = Field(None, description="name that requests use; default: the directory's name")
    engines: str = Field(
        "", description="engines beside those in Redis: host:port or id=host:port, with commas between"
    )
    redis_url: str | None = Field(None, description="redis://host:port/db; without it only `engines` are used")
    redis_prefix: str = Field("octavo:", description="prefix of every key in Redis")

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
    drain_grace_s: float = Field(30.0, ge=0, le=86_400, description="time that running requests get when draining")
    tokenizer_threads: int = Field(2, ge=1, le=256, description="threads that encode long prompts")

    otlp_endpoint: str | None = Field(
        None, description=f"OTLP/gRPC endpoint for traces; default: {_OTEL_ENDPOINT}, else none"
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="share of new traces recorded")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")
    log_form: Literal["auto", "json", "console"] = Field("auto", description="form of log lines")

    @field_validator("engines", mode="before")
    @classmethod
    def _join_engines(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, value: str) -> str:
        for engine in _static_engines(value):
            _address(engine.address)
        return value

    @property
    def static_engines(self) -> list[StaticEngine]:
        """Engines named by `engines`."""
        return _static_engines(self.engines)

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


def load_config(arguments: Sequence[str], environ: Mapping[str, str]) -> RouterConfig:
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
    if environ.get(_OTEL_ENDPOINT):
        file.setdefault("otlp_endpoint", environ[_OTEL_ENDPOINT])
    origin = {key: f"{path}:{key}" for key in file}
    origin |= {key: f"environment:{ENV_PREFIX}{key.upper()}" for key in environment}
    origin |= {key: f"flag:--{key.replace('_', '-')}" for key in flags}
    try:
        return RouterConfig(**(file | environment | flags))
    except ValidationError as error:
        raise ConfigError([_problem(origin, details) for details in error.errors()]) from error


def _static_engines(value: str) -> list[StaticEngine]:
    engines = []
    for entry in filter(None, (part.strip() for part in value.split(","))):
        name, separator, address = entry.rpartition("=")
        engines.append(StaticEngine(address=address, engine_id=name if separator else None))
    return engines


def _problem(origin: Mapping[str, str], details: Mapping[str, Any]) -> str:
    key = str(details["loc"][0]) if details["loc"] else "configuration"
    reason = "no such setting" if details["type"] == "extra_forbidden" else details["msg"].removeprefix("Value error, ")
    return f"{origin.get(key, key)}: {reason}"


def _from_flags(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="octavo-router",
        description="Send each request to the engine that holds its prefix.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below, in snake_case")
    for name, field in RouterConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=field.description)
        else:
            choices = [str(each) for each in get_args(field.annotation) if isinstance(each, str)]
            notes = f" ({', '.join(choices)})" if choices else ""
            notes += f" (default: {field.default})" if isinstance(field.default, str | int | float) else ""
            text = f"{field.description}{notes}".replace("%", "%%")
            parser.add_argument(flag, metavar="VALUE", help=text)
    try:
        known, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError([f"flag:{error.argument_name}: {error.message}"]) from error
    if unknown:
        raise ConfigError([f"flag:{flag}: no such setting" for flag in unknown if flag.startswith("-")] or unknown)
    return {name: value for name, value in vars(known).items() if value is not None}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error
