from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from octavo_client.gguf_conversion import (
    ConversionError,
    bfloat16_bits,
    convert,
    halves_from_pairs,
    hugging_face_name,
)
from support.tiny_gguf import HEAD_DIM, HEADS, KV_HEADS, LAYERS, TEMPLATE, TOKENS, WIDTH, interleaved, write_gguf
from tokenizers import Tokenizer, pre_tokenizers


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("converted")
    weights = write_gguf(folder / "tiny.gguf")
    directory = folder / "model"
    directory.mkdir()
    convert(folder / "tiny.gguf", directory, lambda _text, _fraction: None)
    return directory, weights


def from_bfloat16(raw: bytes, shape: list[int]) -> np.ndarray:
    bits = np.frombuffer(raw, dtype="<u2").astype("<u4") << 16
    return bits.view("<f4").reshape(shape)


def rotate_pairs(vector: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn (0, 1), (2, 3), ... of a head."""
    even, odd = vector[0::2], vector[1::2]
    turned = np.empty_like(vector)
    turned[0::2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[1::2] = odd * np.cos(angles) + even * np.sin(angles)
    return turned


def rotate_halves(vector: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn (0, D/2), (1, D/2 + 1), ... of a head."""
    first, second = np.split(vector, 2)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def test_reordered_rows_undo_the_interleaving() -> None:
    weight = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)
    assert np.array_equal(halves_from_pairs(interleaved(weight, 2), 2), weight)


def test_attention_scores_are_the_same_in_both_row_orders() -> None:
    draw = np.random.default_rng(1)
    q_pairs, k_pairs, x = draw.standard_normal((4, 8)), draw.standard_normal((4, 8)), draw.standard_normal(8)
    here, there = np.array([0.3, 0.01]), np.array([1.2, 0.04])
    by_pairs = rotate_pairs(q_pairs @ x, here) @ rotate_pairs(k_pairs @ x, there)
    q_halves, k_halves = halves_from_pairs(q_pairs, 1), halves_from_pairs(k_pairs, 1)
    by_halves = rotate_halves(q_halves @ x, here) @ rotate_halves(k_halves @ x, there)
    assert by_halves == pytest.approx(by_pairs)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (0.0, 0x0000),
        (1.0 + 2**-8, 0x3F80),  # halfway between two: to the even one below
        (1.0 + 3 * 2**-8, 0x3F82),  # halfway: to the even one above
        (1.0 + 2**-8 + 2**-16, 0x3F81),  # just above halfway
        (3.0e38, 0x7F62),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert bfloat16_bits(np.array([value], dtype=np.float32)).tolist() == [bits]


def test_weights_have_the_names_shapes_and_rows_of_hugging_face(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    directory, weights = converted
    stored = dict(safetensors.deserialize((directory / "model.safetensors").read_bytes()))
    assert stored.keys() == weights.keys()
    for name, weight in weights.items():
        assert stored[name]["dtype"] == "BF16"
        assert stored[name]["shape"] == list(weight.shape)
        read_back = from_bfloat16(bytes(stored[name]["data"]), stored[name]["shape"])
        assert np.allclose(read_back, weight, rtol=2**-8, atol=0), name


def test_weight_data_is_aligned(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    raw = (converted[0] / "model.safetensors").read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0


def test_configuration_describes_the_model(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = json.loads((converted[0] / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": len(TOKENS),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    }
    assert {key: config[key] for key in expected} == expected
    assert json.loads((converted[0] / "generation_config.json").read_text())["eos_token_id"] == 2


def test_chat_template_and_special_tokens_are_kept(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    config = json.loads((converted[0] / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a 12", ["a", "Ġ", "1", "2"]),  # byte-level alone would give "Ġ1"
        ("12", ["1", "2"]),  # although a merge for "12" exists
        ("x  7", ["x", "ĠĠ", "7"]),
        ("x a", ["x", "Ġa"]),
        ("a<|im_end|>b", ["a", "<|im_end|>", "b"]),
    ],
)
def test_every_digit_is_a_token_of_its_own(
    converted: tuple[Path, dict[str, np.ndarray]], text: str, tokens: list[str]
) -> None:
    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    encoding = tokenizer.encode(text)
    assert encoding.tokens == tokens
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


def test_a_byte_level_split_alone_would_be_wrong(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode("a 12").tokens != ["a", "Ġ", "1", "2"]


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture="qwen2")
    with pytest.raises(ConversionError, match="qwen2"):
        convert(tmp_path / "other.gguf", tmp_path, lambda _text, _fraction: None)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", extra_tensor="blk.0.attn_q.bias")
    with pytest.raises(ConversionError, match=r"attn_q\.bias"):
        convert(tmp_path / "other.gguf", tmp_path, lambda _text, _fraction: None)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(ConversionError, match=r"noise\.gguf"):
        convert(tmp_path / "noise.gguf", tmp_path, lambda _text, _fraction: None)


def test_names_of_an_untied_head() -> None:
    assert hugging_face_name("output.weight") == "lm_head.weight"
