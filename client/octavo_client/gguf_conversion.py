"""Turns a GGUF file of a Llama-architecture model into a Hugging Face directory with bfloat16 weights, without torch.

A GGUF file differs from such a directory in three ways that matter: tensors have other names and may be quantized; the
rows of the query and key projections are interleaved for another form of rotary embedding; and the pre-tokenizer is
given by a name only. Needs the packages `gguf` and `tokenizers`; import it only where something is converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Progress = Callable[[str, float | None], None]
"""Called with what is being done now, and the fraction of it that is done if that is known."""

Facts = Mapping[str, Any]
"""The key-value part of a GGUF file."""

_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN: Final = 3  # tokenizer.ggml.token_type of a special token


class ConversionError(Exception):
    """Not a GGUF file that this converter knows. The message says what is in the way."""


def convert(gguf_file: Path, directory: Path, progress: Progress) -> None:
    """Write configuration, tokenizer and weights of `gguf_file` into the existing `directory`.

    Raises:
        ConversionError: not a Llama-architecture model with a "smollm" tokenizer.
    """
    progress("Reading the GGUF file", None)
    try:
        reader = GGUFReader(gguf_file)
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise ConversionError(f"{gguf_file.name} is not a readable GGUF file") from error
    _require(facts, "general.architecture", "llama")
    _require(facts, "tokenizer.ggml.model", "gpt2")
    _require(facts, "tokenizer.ggml.pre", "smollm")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    _write_json(directory / "config.json", model_config(facts, tied_embeddings=tied))
    _write_json(directory / "generation_config.json", generation_config(facts))
    progress("Building the tokenizer", None)
    _write_json(directory / "tokenizer_config.json", tokenizer_config(facts))
    write_tokenizer(facts, directory / "tokenizer.json")
    _write_weights(reader.tensors, facts, directory / "model.safetensors", progress)


def model_config(facts: Facts, *, tied_embeddings: bool) -> dict[str, Any]:
    """Return config.json as transformers writes it for LlamaForCausalLM."""
    heads = facts["llama.attention.head_count"]
    width = facts["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("llama.attention.head_count_kv", heads),
        "head_dim": facts.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": facts["llama.context_length"],
        # GGUF keeps float32: 1e-5 reads back as 9.999999747e-06.
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(facts.get("llama.rope.freq_base", 10000.0))},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied_embeddings,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"),
    }


def generation_config(facts: Facts) -> dict[str, Any]:
    """Return generation_config.json: the ids that begin, end and pad an output."""
    return {
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"),
    }


def tokenizer_config(facts: Facts) -> dict[str, Any]:
    """Return tokenizer_config.json with the chat template.

    The class is the generic one: a GPT-2 class would replace the pre-tokenizer of tokenizer.json by its own.
    """
    tokens = facts["tokenizer.ggml.tokens"]
    special = {
        role: tokens[facts[key]]
        for role, key in (
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
        )
        if key in facts
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        "chat_template": facts["tokenizer.chat_template"],
    }


def write_tokenizer(facts: Facts, path: Path) -> None:
    """Write tokenizer.json: byte-level BPE that keeps every digit a token of its own.

    "smollm" splits digits before the byte-level pattern sees the text, so that "a 12" is "a", " ", "1", "2"; the
    byte-level pattern alone would join the space to the digits.
    """
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL_TOKEN
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(path))


def hugging_face_name(name: str) -> str:
    """Return the name of a tensor in a Hugging Face directory.

    Raises:
        ConversionError: a tensor that a Llama model does not have.
    """
    if name in _NAMES:
        return _NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if layer.isdecimal() and part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}.weight"
        case _:
            raise ConversionError(f'the tensor "{name}" has no place in a Llama model')


def halves_from_pairs(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo the row order of a GGUF query or key projection.

    GGUF keeps the two rows that a rotary embedding turns together side by side (0, 1), (2, 3), ...; Hugging Face keeps
    the first of every pair in the first half of a head: (0, D/2), (1, D/2 + 1), ...

    Args:
        weight: [num_heads * D, width].
        num_heads: query heads for q, key-value heads for k.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bfloat16 bits of finite float32 values, rounded to nearest, ties to even."""
    bits: NDArray[np.uint32] = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: NDArray[np.uint32] = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    shifted: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype("<u2")
    return shifted


def _write_weights(tensors: Iterable[Any], facts: Facts, path: Path, progress: Progress) -> None:
    """Write every tensor as bfloat16 into one safetensors file, holding one tensor in memory at a time.

    The format is an 8-byte little-endian length, a JSON header with dtype, shape and byte range of each tensor, and the
    bytes. The header is padded with spaces to a multiple of 8, so that the data is aligned.
    """
    heads = facts["llama.attention.head_count"]
    heads_of = {"q_proj": heads, "k_proj": facts.get("llama.attention.head_count_kv", heads)}
    by_name = {hugging_face_name(tensor.name): tensor for tensor in tensors}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(by_name.items()):
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF lists the innermost dimension first
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for index, (name, tensor) in enumerate(sorted(by_name.items())):
            progress("Converting the weights to bfloat16", index / len(by_name))
            weight = dequantize(tensor.data, tensor.tensor_type)
            projection = name.split(".")[-2]
            if projection in heads_of:
                weight = halves_from_pairs(weight, heads_of[projection])
            file.write(bfloat16_bits(weight).data)


def _require(facts: Facts, key: str, value: str) -> None:
    if facts.get(key) != value:
        raise ConversionError(f'{key} is "{facts.get(key)}"; this converter knows "{value}" only')


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
