"""The real default model, where `octavo model prepare` has been run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from octavo.model_directory import resolve_model
from octavo_client.default_model import is_prepared
from tokenizers import Tokenizer

pytestmark = pytest.mark.skipif(not is_prepared(), reason="run `octavo model prepare`")


@pytest.fixture
def directory() -> Path:
    return resolve_model()


def test_weights_are_those_of_smollm2_135m(directory: Path) -> None:
    with (directory / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    assert len(header) == 272
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    assert sum(math.prod(tensor["shape"]) for tensor in header.values()) == 134_515_008
    assert header["model.embed_tokens.weight"]["shape"] == [49152, 576]
    assert header["model.layers.29.self_attn.k_proj.weight"]["shape"] == [192, 576]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("in 2024, 35 cats", ["in", "Ġ", "2", "0", "2", "4", ",", "Ġ", "3", "5", "Ġcats"]),
        ("hello\n  42", ["hello", "ĊĠĠ", "4", "2"]),  # the spaces stay with the newline: a digit follows, not a word
        ("The capital of France", ["The", "Ġcapital", "Ġof", "ĠFrance"]),
        ("<|im_start|>user\n", ["<|im_start|>", "user", "Ċ"]),
    ],
)
def test_the_tokenizer_splits_as_the_original_does(directory: Path, text: str, tokens: list[str]) -> None:
    assert Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).tokens == tokens


def test_a_chat_ends_with_the_turn_of_the_assistant(directory: Path) -> None:
    template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    assert "add_generation_prompt" in template
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
