from __future__ import annotations

from typing import Any

import pytest
from octavo_engine.models.config import Rope, UnsupportedModel, parse_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_rope_is_read_as_transformers_4_and_5_write_it() -> None:
    old = parse_config(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}})
    new = parse_config(LLAMA | {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}})
    assert old.rope == new.rope == Rope(theta=5e5, factor=8.0)


def test_dtype_is_read_under_both_names() -> None:
    assert parse_config(LLAMA | {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
    assert parse_config(LLAMA | {"dtype": "float16"}).dtype == "float16"


def test_heads_default_to_those_of_the_hidden_size() -> None:
    config = parse_config(LLAMA)
    assert (config.num_kv_heads, config.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        parse_config(LLAMA | change)


def test_qwen2_windows_start_at_max_window_layers_only_if_switched_on() -> None:
    qwen = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "max_window_layers": 3}
    assert parse_config(qwen | {"use_sliding_window": False}).windows == (0, 0, 0, 0)
    assert parse_config(qwen | {"use_sliding_window": True}).windows == (0, 0, 0, 32)


def test_layer_types_decide_the_windows() -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    assert parse_config(LLAMA | {"sliding_window": 8, "layer_types": kinds}).windows == (0, 8, 0, 8)


def test_generation_config_decides_the_end_of_sequence() -> None:
    assert parse_config(LLAMA).eos_token_ids == (2,)
    assert parse_config(LLAMA, {"eos_token_id": [5, 6]}).eos_token_ids == (5, 6)
