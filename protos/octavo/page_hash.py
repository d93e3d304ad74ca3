"""The page-hash chain: how a router and an engine name the same prefix page without talking.

A full page of a prompt is named by ``h_i = SHA-256(h_{i-1} | ids_i)`` cut to 16 bytes, ``ids_i`` being the page's token
ids as little-endian u32. The chain starts at a root that binds everything else that decides what a page holds: model
revision, tokenizer, adapter, page size and tenant salt. Equal hashes therefore mean equal pages. Events and routing
need less certainty and carry the first 8 bytes (`short_hash`): a collision there costs speed, never correctness.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

HASH_BYTES = 16
SHORT_HASH_BYTES = 8
# Pages that a lazy chain hashes at once. Few at first: that nobody holds a prompt shows at its first page.
_FIRST_PAGES = 8
_MORE_PAGES = 32


def root_hash(
    *,
    model_revision: str,
    tokenizer_revision: str,
    page_size: int,
    adapter: str = "",
) -> bytes:
    """Return the 16-byte root of a chain.

    Fields are length-prefixed, so that no two different tuples give the same bytes.
    """
    digest = hashlib.sha256(b"octavo.page.v1")
    fields = (model_revision.encode(), tokenizer_revision.encode(), adapter.encode())
    for field in fields:
        digest.update(len(field).to_bytes(4, "little"))
        digest.update(field)
    digest.update(page_size.to_bytes(4, "little"))
    return digest.digest()[:HASH_BYTES]


def salted_root(root: bytes, cache_salt: bytes) -> bytes:
    """Return the root for a tenant's salt, given the root without one. An empty salt changes nothing."""
    if not cache_salt:
        return root
    return hashlib.sha256(b"octavo.salt.v1" + root + cache_salt).digest()[:HASH_BYTES]


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Return token ids as little-endian u32."""
    packed = array("I", token_ids)
    if sys.byteorder != "little":
        packed.byteswap()
    return packed.tobytes()


def page_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of one full page that follows the page (or root) `parent`."""
    return hashlib.sha256(parent + token_bytes(token_ids)).digest()[:HASH_BYTES]


def chain(root: bytes, token_ids: Sequence[int], page_size: int) -> list[bytes]:
    """Return the hashes of every full page of `token_ids`, in order; a partial last page has none."""
    raw = token_bytes(token_ids)
    stride = 4 * page_size
    sha256 = hashlib.sha256  # looked up once: a router hashes the pages of every prompt
    hashes: list[bytes] = []
    parent = root
    for start in range(0, len(raw) - stride + 1, stride):
        parent = sha256(parent + raw[start : start + stride]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes


class ShortChain:
    """The short hashes of the full pages of a prompt, hashed no further than somebody has read.

    Whoever looks for the prompt stops at the first page that nobody holds; what lies behind it need not be hashed for that.
    """

    def __init__(self, root: bytes, token_ids: Sequence[int], page_size: int) -> None:
        self._token_ids = token_ids
        self._page_size = page_size
        self._num_pages = len(token_ids) // page_size
        self._last = root  # hash of the last page that is known, or the root
        self._known: list[int] = []

    def __len__(self) -> int:
        return self._num_pages

    def __iter__(self) -> Iterator[int]:
        start = 0
        while start < self._num_pages:
            if start == len(self._known):
                self._extend(_MORE_PAGES if start else _FIRST_PAGES)
            known = self._known[start:]
            yield from known
            start += len(known)

    def after(self, num_pages: int) -> Sequence[int]:
        """Return the hashes of all pages but the first `num_pages`; they too are made when they are read."""
        return _Rest(self, num_pages)

    def whole(self) -> list[int]:
        """Hash what is not hashed yet, and return all of it."""
        self._extend(self._num_pages - len(self._known))
        return self._known

    def _extend(self, num_pages: int) -> None:
        start = len(self._known) * self._page_size
        hashes = chain(self._last, self._token_ids[start : start + num_pages * self._page_size], self._page_size)
        if hashes:
            self._last = hashes[-1]
            self._known += short_hashes(hashes)
        if len(self._known) == self._num_pages:
            self._token_ids = ()  # notes of a placement outlive the prompt, and need the hashes only


class _Rest(Sequence[int]):
    def __init__(self, chain: ShortChain, first: int) -> None:
        self._chain = chain
        self._first = first

    def __len__(self) -> int:
        return max(0, len(self._chain) - self._first)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._chain.whole()[self._first :][index]

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])


def short_hash(full: bytes) -> int:
    """Return the first 8 bytes of a page hash as a little-endian number: the form in events and directories."""
    return int.from_bytes(full[:SHORT_HASH_BYTES], "little")


def short_hashes(hashes: Sequence[bytes]) -> list[int]:
    """Return `short_hash` of each page hash, at a fraction of the cost of calling it for each."""
    words = array("Q", b"".join(hashes))
    if sys.byteorder != "little":
        words.byteswap()
    return words[:: HASH_BYTES // SHORT_HASH_BYTES].tolist()
