"""Remembers the token ids of pieces of text, so that a piece that comes again is not encoded again."""

from __future__ import annotations

import hashlib
import secrets
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_DIGEST_BYTES: Final = 16
# What an entry takes beside its ids: its key, the array's and the table's own memory.
_ENTRY_BYTES: Final = 200


class TokenCache:
    """Token ids by piece of text, the least recently used dropped first. Any thread may use it.

    It keeps no text: a piece is known by a digest under a key of this process, so nobody can find two that collide.

    Args:
        max_bytes: most memory that it may take; 0 remembers nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_encoded_chars = 0
        self._key = secrets.token_bytes(_DIGEST_BYTES)
        self._ids: OrderedDict[bytes, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_bytes(self) -> int:
        """Memory that its entries take, about."""
        return self._num_bytes

    @property
    def num_encoded_chars(self) -> int:
        """Characters that were not found, since the start."""
        return self._num_encoded_chars

    def encode(self, kind: str, piece: str, encode: Callable[[str], list[int]]) -> array[int]:
        """Return the ids of a piece.

        Args:
            kind: way of encoding, at most 16 ASCII characters: the same text may have other ids in another.
            piece: the text.
            encode: gives the ids of a piece that is not known.
        """
        digest = self._digest(kind, piece)
        with self._lock:
            ids = self._ids.get(digest)
            if ids is not None:
                self._ids.move_to_end(digest)
                return ids
        ids = array("I", encode(piece))
        with self._lock:
            self._num_encoded_chars += len(piece)
            self._remember(digest, ids)
        return ids

    def knows(self, kind: str, piece: str) -> bool:
        """Whether the ids of a piece are remembered now; see `encode`."""
        digest = self._digest(kind, piece)
        with self._lock:
            return digest in self._ids

    def check(self) -> None:
        """Assert that the bytes are counted right and bounded. For tests."""
        assert self._num_bytes == sum(map(_size, self._ids.values()))  # noqa: S101  this is what check() is for
        assert self._num_bytes <= self._max_bytes  # noqa: S101

    def _digest(self, kind: str, piece: str) -> bytes:
        # A lone surrogate has no UTF-8: it must not be taken for another text before the tokenizer refuses it.
        text = piece.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=_DIGEST_BYTES, key=self._key, person=kind.encode("ascii")).digest()

    def _remember(self, digest: bytes, ids: array[int]) -> None:
        size = _size(ids)
        if size > self._max_bytes or digest in self._ids:
            return
        self._ids[digest] = ids
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            _, oldest = self._ids.popitem(last=False)
            self._num_bytes -= _size(oldest)


def _size(ids: array[int]) -> int:
    return _ENTRY_BYTES + ids.itemsize * len(ids)
