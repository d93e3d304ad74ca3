from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from octavo.random_model import write_random_model
from octavo_engine.models.config import UnsupportedModel, read_config
from octavo_engine.models.weights import SafetensorsFiles, open_weights, random_fetch
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


@pytest.fixture
def random_model(tmp_path: Path) -> Path:
    write_random_model(tmp_path, "tiny", seed=3)
    return tmp_path


def test_random_weights_take_the_place_of_files(random_model: Path) -> None:
    config = read_config(random_model)
    fetch = open_weights(random_model, config, torch.device("cpu"))
    weight = fetch("model.layers.1.mlp.up_proj.weight")
    assert weight is not None
    assert weight.shape == (config.intermediate_size, config.hidden_size)
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    norm = fetch("model.norm.weight")
    assert norm is not None
    assert torch.equal(norm, torch.ones(config.hidden_size))
    assert fetch("model.layers.2.mlp.up_proj.weight") is None


def test_random_weights_depend_on_seed_and_name_alone(random_model: Path) -> None:
    config = read_config(random_model)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    first, again, other = (random_fetch(config, seed) for seed in (3, 3, 4))
    values = [first(name) for name in names]
    assert torch.equal(torch.stack([again(name) for name in reversed(names)]), torch.stack(values[::-1]))
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(other(names[0]), values[0])


def test_without_files_or_a_seed_there_is_no_model(random_model: Path) -> None:
    config = read_config(random_model)
    (random_model / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        open_weights(random_model, config, torch.device("cpu"))
