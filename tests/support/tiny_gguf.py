"""Writes a Llama-architecture GGUF file small enough to check by hand: 2 layers, width 8, 2 query heads, 1 KV head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

WIDTH, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 8, 16, 2, 1, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The byte-level alphabet writes a space as "Ġ" and a newline as "Ċ".
LETTERS = [*"abcx0123456789", "Ġ", "Ċ", "ĠĠ", "Ġa", "Ġ1", "12"]
MERGES = ["Ġ Ġ", "Ġ a", "Ġ 1", "1 2"]
TOKENS = [*SPECIAL, *LETTERS]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a projection as GGUF does for Llama: (0, D/2), (1, D/2 + 1), ... become neighbours."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the model's float32 tensors by their Hugging Face names."""
    draw = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (WIDTH,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": (WIDTH,),
            f"{prefix}.mlp.gate_proj.weight": (FFN, WIDTH),
            f"{prefix}.mlp.up_proj.weight": (FFN, WIDTH),
            f"{prefix}.mlp.down_proj.weight": (WIDTH, FFN),
        }
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(path: Path, *, architecture: str = "llama", extra_tensor: str | None = None) -> dict[str, np.ndarray]:
    """Write the file; return its weights by their Hugging Face names."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in TOKENS]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    made = weights()
    for name, weight in made.items():
        writer.add_tensor(_gguf_name(name), _gguf_rows(name, weight))
    if extra_tensor:
        writer.add_tensor(extra_tensor, np.zeros((1, WIDTH), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def _gguf_rows(name: str, weight: np.ndarray) -> np.ndarray:
    if "q_proj" in name:
        return np.ascontiguousarray(interleaved(weight, HEADS))
    if "k_proj" in name:
        return np.ascontiguousarray(interleaved(weight, KV_HEADS))
    return weight


def _gguf_name(name: str) -> str:
    parts = {
        "input_layernorm": "attn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    pieces = name.split(".")
    return f"blk.{pieces[2]}.{parts[pieces[-2]]}.weight"
