"""Turns output token ids into text piece by piece: no partial character leaves, and the pieces add up exactly.

For every list of ids, the pieces joined together equal the decoding of the whole list without special tokens. Most
tokenizers are byte-level: a token is a string of bytes, and text is those bytes read as UTF-8. The others decode a token
differently at the start of a text than within it, so they are decoded in a window of the last tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN_LEN = len("<0x00>")


class Detokenizer(Protocol):
    """Text of one choice, in order."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next token ids; return the text that they complete."""

    def flush(self) -> str:
        """Return the text still held back. Nothing may be fed afterwards."""


class Vocabulary:
    """What a token id means, for detokenizers; shared by all requests."""

    def __init__(self, tokenizer: Tokenizer, *, byte_level: bool) -> None:
        self.tokenizer = tokenizer
        self._byte_level = byte_level
        self._special = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self.bytes_of = _BytesOf(self)

    def detokenizer(self) -> Detokenizer:
        """Return a detokenizer for one choice."""
        return ByteDetokenizer(self) if self._byte_level else WindowDetokenizer(self)

    def is_visible(self, token_id: int) -> bool:
        """Whether the id has text: special tokens and ids beyond the vocabulary have none."""
        return token_id not in self._special and self.tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is a byte-fallback token such as <0xE2>."""
        token = self.tokenizer.id_to_token(token_id)
        return token is not None and len(token) == _BYTE_TOKEN_LEN and token.startswith("<0x") and token.endswith(">")


class _BytesOf(dict[int, bytes]):
    """The bytes of each byte-level token; none for special and unknown ids. A token is read when it first comes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    def __missing__(self, token_id: int) -> bytes:
        read = self[token_id] = self._read(token_id)
        return read

    def _read(self, token_id: int) -> bytes:
        token = self._vocabulary.tokenizer.id_to_token(token_id)
        if token is None or not self._vocabulary.is_visible(token_id):
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token, written as plain text
            return token.encode()


class ByteDetokenizer:
    """Joins the bytes of byte-level tokens and reads them as UTF-8."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._bytes_of = vocabulary.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next token ids; return the characters that they complete."""
        bytes_of = self._bytes_of
        return self._decoder.decode(b"".join([bytes_of[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """Return U+FFFD for a character that stayed incomplete."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Decodes the newest tokens together with those before them, and returns what the newest add."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._ids: list[int] = []  # from the start of the window
        self._num_read = 0  # ids of the window whose text has left

    def feed(self, token_ids: Sequence[int]) -> str:
        """Take the next token ids; return the text that they complete."""
        return "".join(map(self._feed_one, token_ids))

    def flush(self) -> str:
        """Return the text of the tokens that were held back."""
        return self._advance()

    def _feed_one(self, token_id: int) -> str:
        if not self._vocabulary.is_visible(token_id):
            return ""
        self._ids.append(token_id)
        # A later byte decides how a whole run of byte tokens is read, so a run leaves only when it is over.
        if self._vocabulary.is_byte(token_id):
            return ""
        return "" if self._text(0).endswith(_REPLACEMENT) else self._advance()

    def _advance(self) -> str:
        known = self._vocabulary.tokenizer.decode(self._ids[: self._num_read], skip_special_tokens=False)
        added = self._text(0)[len(known) :]
        if added:
            del self._ids[: self._num_read]
            self._num_read = len(self._ids)
        return added

    def _text(self, start: int) -> str:
        return str(self._vocabulary.tokenizer.decode(self._ids[start:], skip_special_tokens=False))


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable bytes stand for themselves; the others are numbered from U+0100 on, so that no token has a blank in it.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return characters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()
