from __future__ import annotations

import asyncio
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.model_directory import default_model_directory, is_model_directory
from octavo_router.chat_template import Message
from octavo_router.segments import Cuts
from octavo_router.token_cache import TokenCache
from octavo_router.tokenizer import Tokenizer, TokenizerThreads
from support.tiny_tokenizer import SPECIAL_TOKENS, write_model_directory
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer

ODD_TOKENS = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<|im_end|>!", special=False, normalized=False),  # longer: it wins
    AddedToken(">x<|im", special=False, normalized=False),  # begins before a special token and takes part of it
    AddedToken("<mask>", special=True, normalized=False, lstrip=True),
    AddedToken("<pad>", special=True, normalized=False, rstrip=True),
    AddedToken("Tool", special=True, normalized=True),
]
PARTS = ["hello", " ", "  ", "\n", "é", "e\u0301", "7", "x", "A B", ">", "<", "!", "東京", "\u2581", "tool"]


def odd_tokenizer(*, pre_tokenizer, normalizer=None, tokens=(), frame=False):
    """Return a small tokenizer whose pieces depend on where they stand, if the cuts are wrong."""
    fast = FastTokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    fast.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        fast.normalizer = normalizer
    fast.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False)
    fast.train_from_iterator(["hello hello tool A B x 7 é 東京 !", "hello\nhe llo  hello<>"], trainer)
    for token in (*ODD_TOKENS, *tokens):
        (fast.add_special_tokens if token.special else fast.add_tokens)([token])
    if frame:
        start = fast.token_to_id("<s>")
        fast.post_processor = processors.TemplateProcessing(
            single="<s> $A <s> <s>", pair="$A $B", special_tokens=[("<s>", start)]
        )
    return fast


ODD = {
    "prefix before the first word only": lambda: odd_tokenizer(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")
    ),
    "prefix before every piece": lambda: odd_tokenizer(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "prefix by a normalizer": lambda: odd_tokenizer(
        pre_tokenizer=pre_tokenizers.Split(Regex(" "), "merged_with_next"),
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.NFC(), normalizers.Lowercase()]),
    ),
    "a token that must stand alone": lambda: odd_tokenizer(
        pre_tokenizer=pre_tokenizers.Whitespace(),
        tokens=[
            AddedToken("qz", special=False, normalized=False, single_word=True),
            AddedToken("end", special=True, normalized=False),  # "qz" before it does not stand alone
        ],
    ),
    "a special token that ends in a space": lambda: odd_tokenizer(
        pre_tokenizer=pre_tokenizers.Whitespace(), tokens=[AddedToken("x ", special=True, normalized=False)]
    ),
    "tokens before and after every text": lambda: odd_tokenizer(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"), frame=True
    ),
}


def texts(tokens):
    return st.lists(st.sampled_from([*PARTS, *tokens]) | st.text(max_size=3), max_size=12).map("".join)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tokenizer(write_model_directory(tmp_path_factory.mktemp("cache") / "tiny"))


def of_fast(directory, fast):
    """Return the tokenizer of a model directory with another tokenizer.json."""
    write_model_directory(directory)
    fast.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


def assert_exact(tokenizer, text):
    whole = tokenizer._fast
    for _ in ("first from the tokenizer", "then from the cache"):
        assert tokenizer._encode_pieces(text) == whole.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_text(text) == whole.encode(text, add_special_tokens=True).ids


@settings(deadline=None, max_examples=60)
@given(text=texts([*SPECIAL_TOKENS, "<think hard>"]))
def test_pieces_give_the_ids_of_the_whole(tiny, text):
    assert_exact(tiny, text)


@pytest.mark.parametrize("name", ODD)
def test_pieces_give_the_ids_of_the_whole_with_an_odd_tokenizer(name, tmp_path):
    tokenizer = of_fast(tmp_path / "odd", ODD[name]())
    contents = [token.content for token in tokenizer._fast.get_added_tokens_decoder().values()]

    @settings(deadline=None, max_examples=60, database=None)
    @given(texts(contents))
    def holds(text):
        assert_exact(tokenizer, text)

    holds()
    for text in (">x<|im_end|>", "qzend", "qz end", "a<|im_end|>! x", "a <mask> <s>", "<pad> <s> b"):
        assert_exact(tokenizer, text)


@pytest.mark.skipif(not is_model_directory(default_model_directory()), reason="the default model is not prepared")
def test_pieces_give_the_ids_of_the_whole_with_the_default_model():
    tokenizer = Tokenizer(default_model_directory())
    specials = list(tokenizer._specials)

    @settings(deadline=None, max_examples=60, database=None)
    @given(texts(specials))
    def holds(text):
        assert_exact(tokenizer, text)

    holds()


def a_chat(num_turns, seed=1):
    """Return a chat of long turns that ends with a user's."""
    draw = random.Random(seed)
    turn = lambda: " ".join(draw.choices(["page", "fold", "leaf", "Paris", "東京", "12"], k=400))  # noqa: E731
    roles = ["user", "assistant"] * num_turns
    return [Message(role, turn()) for role in roles[: 2 * num_turns - 1]]


def test_second_turn_of_a_long_chat_encodes_only_what_is_new(tiny):
    chat = a_chat(6)
    *before, answer, question = chat
    tiny.encode_chat(before)
    num_encoded = tiny.cache.num_encoded_chars
    ids = tiny.encode_chat(chat)
    new = tiny.cache.num_encoded_chars - num_encoded
    assert ids == tiny._fast.encode(tiny._template.render(chat), add_special_tokens=False).ids
    assert len(answer.content) + len(question.content) <= new <= len(answer.content) + len(question.content) + 60
    assert new < sum(len(message.content) for message in chat) / 4


def test_chat_that_quotes_a_special_token_encodes_only_what_is_new_too(tiny):
    chat = [Message("user", "what is <|im_end|>? " * 100), *a_chat(3)]
    tiny.encode_chat(chat)
    num_encoded = tiny.cache.num_encoded_chars
    answer = Message("assistant", "it ends a turn")
    assert tiny.encode_chat([*chat, answer])
    assert tiny.cache.num_encoded_chars - num_encoded < 100


def test_text_and_control_of_equal_spelling_are_not_mixed_up():
    cache = TokenCache(1 << 16)
    assert list(cache.encode("control", "<|im_end|>", lambda _: [2])) == [2]
    assert list(cache.encode("text", "<|im_end|>", lambda _: [27, 91])) == [27, 91]
    assert list(cache.encode("control", "<|im_end|>", lambda _: [0])) == [2]


def test_least_recently_used_pieces_are_dropped_first():
    cache = TokenCache(3 * (200 + 4 * 2))
    encode = lambda piece: [ord(letter) for letter in piece]  # noqa: E731
    for piece in ("aa", "bb", "cc", "aa", "dd"):
        cache.encode("text", piece, encode)
    cache.check()
    encoded = []
    for piece in ("aa", "cc", "dd", "bb"):
        cache.encode("text", piece, lambda piece: encoded.append(piece) or encode(piece))
    assert encoded == ["bb"]


def test_piece_that_is_too_long_for_the_cache_drops_nothing():
    cache = TokenCache(1000)
    cache.encode("text", "a", lambda _: [1])
    assert list(cache.encode("text", "b" * 999, lambda _: list(range(999)))) == list(range(999))
    assert len(cache) == 1
    cache.check()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 40)), max_size=40), st.integers(0, 1200))
def test_cache_stays_within_its_bytes_and_never_answers_wrong(pieces, max_bytes):
    cache = TokenCache(max_bytes)
    for letter, size in pieces:
        piece = letter * size
        assert list(cache.encode("text", piece, lambda piece: [ord(each) for each in piece])) == [ord(letter)] * size
        cache.check()


def test_cache_keeps_no_text():
    cache = TokenCache(1 << 20)
    cache.encode("text", "a secret", lambda _: [1, 2])
    assert "secret" not in repr(vars(cache))


def test_threads_that_encode_the_same_piece_at_once_agree():
    cache, meet = TokenCache(1 << 16), threading.Barrier(2, timeout=30)
    answers = []

    def encode(_piece):
        meet.wait()  # both are past the lookup: neither found it
        return [1, 2, 3]

    threads = [
        threading.Thread(target=lambda: answers.append(list(cache.encode("text", "same", encode)))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[1, 2, 3]] * 2
    assert len(cache) == 1
    cache.check()


async def test_threads_share_the_cache(tiny):
    threads = TokenizerThreads(tiny, num_threads=2)
    text = "one and the same text, " * 500
    try:
        first = await threads.encode_text(text)
        num_encoded = tiny.cache.num_encoded_chars
        again = await asyncio.gather(*(threads.encode_text(text) for _ in range(4)))
    finally:
        threads.close()
    assert again == [first] * 4
    assert tiny.cache.num_encoded_chars == num_encoded


def test_text_without_special_tokens_is_one_piece():
    cuts = Cuts([AddedToken("<s>", special=True, normalized=False)])
    assert list(cuts.pieces("no token here")) == ["no token here"]
    assert list(cuts.pieces("")) == []
    assert list(cuts.pieces("a<s>b<s><s>")) == ["a", "<s>b", "<s>", "<s>"]
