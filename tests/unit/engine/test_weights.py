from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from octavo_engine.models.config import UnsupportedModel
from octavo_engine.models.weights import SafetensorsFiles
from safetensors.torch import save_file


def test_sharded_weights_are_found_by_the_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = SafetensorsFiles(tmp_path)
    assert torch.equal(files.fetch("b"), torch.zeros(3))
    assert files.fetch("c") is None


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        SafetensorsFiles(tmp_path)
