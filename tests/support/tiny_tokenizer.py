"""A small byte-level tokenizer with a ChatML template, written as a model directory without weights."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CORPUS = (
    "The capital of France is Paris. A sheet folded three times makes eight leaves, that is sixteen pages.",
    "the quick brown fox jumps over the lazy dog; user system assistant tool hello world, hello again",
    "Zürich, naïve café, 東京, Привет мир, 👋🏽 emoji and numbers 0123456789 in a row",
)


def tiny_tokenizer() -> Tokenizer:
    """Return a tokenizer of about 500 tokens; ids 0 to 2 are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    # An added token that is no control token, with a blank, which no byte-level token has.
    tokenizer.add_tokens([AddedToken("<think hard>", special=False, normalized=False)])
    return tokenizer


def write_model_directory(directory: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json, config.json and generation_config.json; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    facts = {"model_type": "llama", "vocab_size": 512, "max_position_embeddings": 4096, "eos_token_id": EOS_ID}
    (directory / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_ID}), encoding="utf-8")
    return directory
