from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo_router.detokenizer import Vocabulary
from support.tiny_tokenizer import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

BYTE_LEVEL = tiny_tokenizer()
NUM_IDS = BYTE_LEVEL.get_vocab_size()
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def byte_fallback_tokenizer() -> Tokenizer:
    """Return a tokenizer of the SentencePiece kind: words with a blank in front, and single bytes for the rest."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁fox", "a", "b", "é", "▁a", "!", "\ufffd"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


FALLBACK = byte_fallback_tokenizer()
TOKENIZERS = pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(BYTE_LEVEL, byte_level=True),
        Vocabulary(BYTE_LEVEL, byte_level=False),
        Vocabulary(FALLBACK, byte_level=False),
    ],
    ids=["bytes", "window", "byte-fallback"],
)


def pieces_of(vocabulary, token_ids, sizes=(1,)):
    detokenizer = vocabulary.detokenizer()
    pieces = []
    start = index = 0
    while start < len(token_ids):
        size = sizes[index % len(sizes)]
        pieces.append(detokenizer.feed(token_ids[start : start + size]))
        start, index = start + size, index + 1
    return [*pieces, detokenizer.flush()]


@given(
    st.lists(st.integers(0, NUM_IDS + 20), max_size=40),  # beyond the vocabulary as well: models pad it
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_pieces_of_any_bytes_add_up_to_the_decoding(token_ids, sizes):
    vocabulary = Vocabulary(BYTE_LEVEL, byte_level=True)
    assert "".join(pieces_of(vocabulary, token_ids, sizes)) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, FALLBACK.get_vocab_size() - 1), max_size=30))
def test_pieces_of_any_byte_fallback_tokens_add_up_to_the_decoding(token_ids):
    vocabulary = Vocabulary(FALLBACK, byte_level=False)
    assert "".join(pieces_of(vocabulary, token_ids)) == FALLBACK.decode(token_ids, skip_special_tokens=True)


@TOKENIZERS
@given(text=TEXTS)
def test_pieces_of_a_text_add_up_and_hold_no_partial_character(vocabulary, text):
    token_ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(vocabulary, token_ids)
    assert "".join(pieces) == vocabulary.tokenizer.decode(token_ids, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_character_leaves_with_its_last_byte():
    detokenizer = Vocabulary(BYTE_LEVEL, byte_level=True).detokenizer()
    token_ids = BYTE_LEVEL.encode("é").ids
    assert [detokenizer.feed([token_id]) for token_id in token_ids][-1] == "é"


def test_special_tokens_have_no_text_and_added_ones_do():
    vocabulary = Vocabulary(BYTE_LEVEL, byte_level=True)
    token_ids = BYTE_LEVEL.encode("<|im_start|>hello<think hard>").ids
    assert "".join(pieces_of(vocabulary, token_ids)) == "hello<think hard>"


def test_first_blank_is_stripped_once_only():
    vocabulary = Vocabulary(FALLBACK, byte_level=False)
    the = FALLBACK.token_to_id("▁the")
    assert pieces_of(vocabulary, [1, the, the]) == ["", "the", " the", ""]
