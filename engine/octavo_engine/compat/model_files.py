"""What a gateway wants to know from a model's directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from octavo.errors import NotFound
from octavo.model_directory import DEFAULT_MODEL, ModelNotFound, resolve_model

from octavo_engine.compat.tokenizer_archive import TokenizerArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model's directory, read.

    Attributes:
        directory: where it is.
        model_type: as config.json names it; may be empty.
        architectures: the same.
        tokenizer: its files.
    """

    directory: Path
    model_type: str
    architectures: tuple[str, ...]
    bos_token_id: int
    pad_token_id: int
    tokenizer: TokenizerArchive

    @classmethod
    def read(cls, model: str | None) -> Self:
        """Read the directory of a model, as the engine is told its name. Blocks.

        Raises:
            NotFound: there is no such directory, or it cannot be read.
        """
        try:
            directory = resolve_model(model or DEFAULT_MODEL)
            facts: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            return cls(
                directory=directory,
                model_type=str(facts.get("model_type") or ""),
                architectures=tuple(map(str, facts.get("architectures") or ())),
                bos_token_id=_token_id(facts.get("bos_token_id")),
                pad_token_id=_token_id(facts.get("pad_token_id")),
                tokenizer=TokenizerArchive.of(directory),
            )
        except (ModelNotFound, OSError, ValueError):
            raise NotFound("no_model_directory", "the engine cannot read its model's directory any more") from None


def _token_id(value: object) -> int:
    """Return a token id; 0, which the service means by "none", for anything else."""
    return value if isinstance(value, int) and value >= 0 else 0
