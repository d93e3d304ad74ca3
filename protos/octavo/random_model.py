"""Models of well-known shapes with random weights, for load tests and benchmarks: `--model random:llama-8b`.

Such a model is a directory like any other, with two differences. config.json asks the engine for random weights, so
there is no file of them. tokenizer.json is made up: ids stand for bytes and then for invented words, one for every id, so
that a router has as much to read and to detokenize as with a real vocabulary of that size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

PREFIX: Final = "random:"
SEED_KEY: Final = "random_weights_seed"
"""Key of config.json that stands for weights: the engine draws them with this seed."""

_SPECIAL_TOKENS: Final = ("<|pad|>", "<|begin|>", "<|end|>")
_LLAMA: Final = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
_QWEN3: Final = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"}
_TOKENS: Final = {"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "llama-8b": _LLAMA
    | _TOKENS
    | {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": _QWEN3
    | _TOKENS
    | {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
    },
    # Small enough for tests of everything around the model.
    "tiny": _LLAMA
    | _TOKENS
    | {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
}
"""What config.json says of each shape, by name."""


def write_random_model(directory: Path, shape: str, seed: int = 0) -> None:
    """Make the directory of a random model; one that is complete already is left alone.

    Several processes may do so at once: each file appears whole.

    Args:
        directory: where; made if need be.
        shape: a key of SHAPES.
        seed: of the weights.

    Raises:
        KeyError: no such shape.
    """
    config = SHAPES[shape] | {SEED_KEY: seed}
    wanted = json.dumps(config, indent=1)
    config_file, tokenizer_file = directory / "config.json", directory / "tokenizer.json"
    if tokenizer_file.is_file() and config_file.is_file() and config_file.read_text("utf-8") == wanted:
        return
    directory.mkdir(parents=True, exist_ok=True)
    _write(tokenizer_file, json.dumps(_tokenizer(config["vocab_size"])))
    _write(config_file, wanted)


def random_seed(directory: Path) -> int | None:
    """Return the seed of a model directory's random weights; None if its weights are in files."""
    seed = json.loads((directory / "config.json").read_text("utf-8")).get(SEED_KEY)
    return seed if isinstance(seed, int) else None


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """Return tokenizer.json of a byte-level BPE without merges, whose vocabulary fills every id."""
    first = len(_SPECIAL_TOKENS)
    vocab = {character: first + index for index, character in enumerate(_byte_characters())}
    words = _words()
    vocab |= {next(words): token_id for token_id in range(first + len(vocab), vocab_size)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token} | special for index, token in enumerate(_SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(zip(_SPECIAL_TOKENS, range(first), strict=True)) | vocab,
            "merges": [],
        },
    }


def _byte_characters() -> Iterator[str]:
    """Yield the character that stands for each byte in a byte-level vocabulary, in the order of bytes.

    Printable bytes stand for themselves; the others are numbered from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    num_others = 0
    for byte in range(256):
        if byte in printable:
            yield chr(byte)
        else:
            yield chr(0x100 + num_others)
            num_others += 1


def _words() -> Iterator[str]:
    """Yield invented words of syllables with a blank before them ("Ġ"), all different, without end."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvwz" for vowel in "aeiou"]
    words = ["Ġ"]
    while True:
        words = [word + syllable for word in words for syllable in syllables]
        yield from words
