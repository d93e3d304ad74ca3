"""The model that is measured, as its directory describes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from octavo.model_directory import resolve_model
from octavo.random_model import PREFIX, SHAPES
from octavo.workloads import HIGHEST_ID


@dataclass(frozen=True, slots=True)
class Model:
    """A model directory and what its config.json says."""

    directory: Path
    config: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> Self:
        """Find a model.

        Args:
            name: a shape with random weights, or whatever `resolve_model` takes.

        Raises:
            ModelNotFound: no such model.
        """
        directory = resolve_model(PREFIX + name if name in SHAPES else name)
        return cls(directory, json.loads((directory / "config.json").read_text("utf-8")))

    @property
    def highest_id(self) -> int:
        """Prompts hold token ids below it."""
        return min(HIGHEST_ID, int(self.config["vocab_size"]))
