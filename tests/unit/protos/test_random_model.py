from __future__ import annotations

import json
from pathlib import Path

import pytest
from octavo.model_directory import ModelNotFound, resolve_model
from octavo.random_model import SHAPES, random_seed, write_random_model
from tokenizers import Tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    return tmp_path


def test_a_random_model_is_made_in_the_cache() -> None:
    directory = resolve_model("random:tiny")
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == SHAPES["tiny"]["vocab_size"]
    assert random_seed(directory) == 0
    assert not list(directory.glob("*.safetensors"))


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelNotFound, match="llama-8b"):
        resolve_model("random:llama-9b")


def test_a_complete_model_is_left_alone() -> None:
    written = (resolve_model("random:tiny") / "tokenizer.json").stat().st_mtime_ns
    assert (resolve_model("random:tiny") / "tokenizer.json").stat().st_mtime_ns == written


def test_a_model_of_another_seed_is_written_anew(tmp_path: Path) -> None:
    write_random_model(tmp_path, "tiny", seed=0)
    write_random_model(tmp_path, "tiny", seed=5)
    assert random_seed(tmp_path) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tokenizer.json"]


def test_its_tokenizer_reads_any_text_and_has_text_for_every_id() -> None:
    tokenizer = Tokenizer.from_file(str(resolve_model("random:tiny") / "tokenizer.json"))
    text = "Zürich, 東京, 👋🏽\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    size = SHAPES["tiny"]["vocab_size"]
    assert tokenizer.get_vocab_size() == size
    words = [tokenizer.decode([token_id]) for token_id in range(259, size)]
    assert len(set(words)) == size - 259
    assert all(word.startswith(" ") for word in words)


def test_a_directory_with_weights_has_no_seed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert random_seed(tmp_path) is None
