"""What a process can be told, from flags, environment and an optional TOML file, all with the same names: `load`.

A flag (`--max-in-flight 64`) wins over the environment (`OCTAVO_ROUTER_MAX_IN_FLIGHT=64`), which wins over the file
(`max_in_flight = 64`) that `--config` or `OCTAVO_ROUTER_CONFIG` names. A key that does not exist is refused: a misspelt
limit must not silently become the default.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from octavo.redis_url import parse_redis_url

EXIT_CONFIG: Final = 78
"""Exit status of a process whose configuration is wrong (sysexits EX_CONFIG): a restart would not help."""

_OTEL_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]=,]+):(\d{1,5})")


class ConfigError(Exception):
    """The configuration is wrong. `problems` are lines of the form "source:key: reason", or "key: reason"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def check_address(value: str) -> str:
    """Return an address of the form host:port as it is.

    Raises:
        ValueError: it has another form.
    """
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match.group(2)) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:7100; port 0 picks a free one")
    return value


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of a checked address; an IPv6 host keeps its brackets."""
    host, _, port = address.rpartition(":")
    return host, int(port)


def _check_redis_url(value: str) -> str:
    parse_redis_url(value)
    return value


Address = Annotated[str, AfterValidator(check_address)]
"""A "host:port"."""
RedisUrl = Annotated[str, AfterValidator(_check_redis_url)]
"""A "redis://host:port/db", or another form that `octavo.redis_url` knows."""


class Settings(BaseModel):
    """Base of a process's configuration, with what every process can be told about its run, traces and logs.

    Attributes:
        environment_prefix: what its environment variables begin with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    environment_prefix: ClassVar[str]

    ready_file: Path | None = Field(None, description="JSON with the bound addresses, written when the process serves")
    exit_with_stdin: bool = Field(False, description="stop when standard input ends")
    drain_grace_s: float = Field(30.0, ge=0, le=86_400, description="time that running requests get when draining")
    redis_prefix: str = Field(
        "octavo:", pattern=r"^[A-Za-z0-9_.:/{}\-]{0,64}$", description="prefix of every key in Redis"
    )
    otlp_endpoint: str | None = Field(
        None, description=f"OTLP/gRPC endpoint for traces; default: {_OTEL_ENDPOINT}, else none"
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="share of new traces recorded")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe level logged")
    log_form: Literal["auto", "json", "console"] = Field("auto", description="form of log lines")


_S = TypeVar("_S", bound=Settings)


def load(
    settings_class: type[_S],
    *,
    program: str,
    description: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
) -> _S:
    """Join flags, environment and file into settings.

    Args:
        settings_class: what is to be loaded.
        program: name of the command, for `--help`.
        description: what the command does, for `--help`.
        arguments: the command line after the command's name.
        environ: all environment variables.

    Raises:
        ConfigError: a key is unknown, a value is wrong, or the file cannot be read.
        SystemExit: `--help` was asked for.
    """
    prefix = settings_class.environment_prefix
    flags = _from_flags(_parser(settings_class, program, description), arguments)
    environment = {
        name.removeprefix(prefix).lower(): value
        for name, value in environ.items()
        if name.startswith(prefix) and value  # an empty variable is one that a compose file left unset
    }
    path = flags.pop("config", None) or environment.pop("config", None)
    file = _from_file(Path(path)) if path else {}
    if environ.get(_OTEL_ENDPOINT):
        file.setdefault("otlp_endpoint", environ[_OTEL_ENDPOINT])
    origin = {key: f"{path}:{key}" for key in file}
    origin |= {key: f"environment:{prefix}{key.upper()}" for key in environment}
    origin |= {key: f"flag:{_flag(key)}" for key in flags}
    try:
        return settings_class(**(file | environment | flags))
    except ValidationError as error:
        raise ConfigError([_problem(origin, details) for details in error.errors()]) from error


def _problem(origin: Mapping[str, str], details: Mapping[str, Any]) -> str:
    key = str(details["loc"][0]) if details["loc"] else "configuration"
    reason = "no such setting" if details["type"] == "extra_forbidden" else details["msg"].removeprefix("Value error, ")
    return f"{origin.get(key, key)}: {reason}"


def _parser(settings_class: type[Settings], program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below, in snake_case")
    fields = settings_class.model_fields
    own = [name for name in fields if name not in Settings.model_fields]
    for name in (*own, *Settings.model_fields):  # what a process has for itself stands first
        field = fields[name]
        if field.annotation is bool:
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=_help(field))
        else:
            parser.add_argument(_flag(name), metavar="VALUE", help=_help(field))
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _help(field: FieldInfo) -> str:
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    notes = f" ({', '.join(choices)})" if choices else ""
    if isinstance(field.default, str | int | float) and not isinstance(field.default, bool) and field.default != "":
        notes += f" (default: {field.default})"
    return f"{field.description}{notes}".replace("%", "%%")


def _from_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
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
