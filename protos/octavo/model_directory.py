"""Finds the directory of a model: the prepared default model, a directory, a random model, or a Hugging Face Hub id.

A model directory holds config.json, tokenizer.json, tokenizer_config.json and safetensors. Routers read the tokenizer
there and engines the weights; both resolve the same name with `resolve_model`. Only a hub id touches the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from octavo import random_model

DEFAULT_MODEL: Final = "smollm2-135m-instruct"
"""Name of the model that `octavo model prepare` makes, and what `--model` is if nobody sets it."""

REQUIRED_FILES: Final = ("config.json", "tokenizer.json")
"""What every model directory must hold, whoever reads it."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# No weights in pickle form, and no code.
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja")


class ModelNotFound(Exception):
    """No model directory for this name. The message says what to do about it."""


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return where Octavo keeps what it can make again: $OCTAVO_CACHE, $XDG_CACHE_HOME/octavo or ~/.cache/octavo."""
    environment = os.environ if environ is None else environ
    if own := environment.get("OCTAVO_CACHE"):
        return Path(own).expanduser()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "octavo"
    return Path("~/.cache/octavo").expanduser()


def default_model_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Return where the default model is once it is prepared; it may not exist yet."""
    return cache_directory(environ) / "models" / DEFAULT_MODEL


def is_model_directory(directory: Path) -> bool:
    """Tell whether a directory holds the files that both a router and an engine need first."""
    return all((directory / name).is_file() for name in REQUIRED_FILES)


def resolve_model(name: str = DEFAULT_MODEL) -> Path:
    """Return the directory of a model.

    Args:
        name: the default model's name, a directory, a shape with random weights such as "random:llama-8b", or a hub id
            such as "Qwen/Qwen3-0.6B".

    Raises:
        ModelNotFound: nothing there; the message names the remedy.
    """
    if name in ("", DEFAULT_MODEL):
        directory = default_model_directory()
        if not is_model_directory(directory):
            raise ModelNotFound(f'the model "{DEFAULT_MODEL}" is not prepared: run `octavo model prepare` once')
        return directory
    if name.startswith(random_model.PREFIX):
        return _random(name)
    directory = Path(name).expanduser()
    if directory.is_dir():
        missing = [file for file in REQUIRED_FILES if not (directory / file).is_file()]
        if missing:
            raise ModelNotFound(f"{directory} is not a model directory: it lacks {' and '.join(missing)}")
        return directory.resolve()
    if _HUB_ID.fullmatch(name):
        return _download(name)
    raise ModelNotFound(
        f'no model "{name}": give "{DEFAULT_MODEL}", a directory with {" and ".join(REQUIRED_FILES)}, '
        'or a hub id such as "Qwen/Qwen3-0.6B"'
    )


def served_name(name: str) -> str:
    """Return the name by which requests call a model: the last part of its directory or hub id.

    Not that of the directory that a hub id resolves to, which is a commit's hash.
    """
    return Path(name or DEFAULT_MODEL).expanduser().absolute().name


def _random(name: str) -> Path:
    shape = name.removeprefix(random_model.PREFIX)
    if shape not in random_model.SHAPES:
        raise ModelNotFound(f"no random model {shape!r}; there are {', '.join(random_model.SHAPES)}")
    directory = cache_directory() / "models" / f"random-{shape}"
    random_model.write_random_model(directory, shape)
    return directory


def _download(hub_id: str) -> Path:
    """Return the local snapshot of a hub repository; one that is already complete is not asked for again."""
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  # only hub ids need it
        from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415  # the same
    except ImportError:
        raise ModelNotFound(
            f'"{hub_id}" is a hub id, which needs the package huggingface_hub: pip install huggingface_hub'
        ) from None
    try:
        return _checked(Path(snapshot_download(hub_id, allow_patterns=list(_HUB_PATTERNS), local_files_only=True)))
    except (LocalEntryNotFoundError, ModelNotFound):
        pass  # not here, or only in part: ask the hub
    try:
        return _checked(Path(snapshot_download(hub_id, allow_patterns=list(_HUB_PATTERNS))))
    except (OSError, ValueError) as error:
        # The hub's own errors are OSErrors; their texts may hold addresses with tokens, so only the kind is told.
        raise ModelNotFound(
            f'cannot fetch "{hub_id}" from the hub ({type(error).__name__}): '
            "check the name, the network and, for a gated model, `hf auth login`"
        ) from error


def _checked(directory: Path) -> Path:
    missing = [file for file in REQUIRED_FILES if not (directory / file).is_file()]
    if missing:
        raise ModelNotFound(f"{directory} lacks {' and '.join(missing)}")
    if not any(directory.glob("*.safetensors")):
        raise ModelNotFound(f"{directory} has no *.safetensors")
    return directory
