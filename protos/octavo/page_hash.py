"""Page hashes: how a router and an engine name the same prefix page without talking.

A full page of a prompt is named by ``h_i = SHA-256(root | ids_1 | ... | ids_i)`` cut to 16 bytes, ``ids_i`` being the i-th
page's token ids as little-endian u32: the hash of the prefix that ends with the page, made by one hash that runs along the
prompt. The root binds everything else that decides what a page holds: model revision, tokenizer, adapter, page size and
tenant salt. Equal hashes therefore mean equal pages. Events and routing need less certainty and carry the first 8 bytes
(`short_hash`): a collision there costs speed, never correctness.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence

HASH_BYTES = 16
SHORT_HASH_BYTES = 8


def root_hash(
    *,
    model_revision: str,
    tokenizer_revision: str,
    page_size: int,
    adapter: str = "",
) -> bytes:
    """Return the 16-byte root of page hashes.

    Fields are length-prefixed, so that no two different tuples give the same bytes.
    """
    digest = hashlib.sha256(b"octavo.page.v2")
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


class PrefixHasher:
    """Hashes the pages of one sequence of tokens in order, and goes on where it stopped.

    Args:
        root: the sequence's root, 16 bytes.
    """

    __slots__ = ("_running",)

    def __init__(self, root: bytes) -> None:
        self._running = hashlib.sha256(root)

    def copy(self) -> PrefixHasher:
        """Return another one that has come as far, for a sequence that begins the same."""
        other = PrefixHasher(b"")
        other._running = self._running.copy()
        return other

    @property
    def prefix_hash(self) -> bytes:
        """Hash of what was hashed so far: the last page's."""
        return self._running.digest()[:HASH_BYTES]

    def hashes(self, raw: bytes, page_size: int) -> list[bytes]:
        """Return the hashes of the next pages.

        Args:
            raw: their token ids, as `token_bytes` gives them; those of a partial page at the end are left out.
            page_size: tokens in a page.
        """
        return [digest[:HASH_BYTES] for digest in self._digests(raw, page_size)]

    def short_hashes(self, raw: bytes, page_size: int) -> list[int]:
        """Return the `short_hash` of each of the next pages, at a fraction of the cost of calling it for each."""
        words = array("Q", b"".join(self._digests(raw, page_size)))
        if sys.byteorder != "little":
            words.byteswap()
        return words[:: self._running.digest_size // SHORT_HASH_BYTES].tolist()

    def _digests(self, raw: bytes, page_size: int) -> list[bytes]:
        # Looked up once: a router hashes the pages of every prompt.
        update = self._running.update
        digest = self._running.digest
        digests: list[bytes] = []
        stride = 4 * page_size
        for (page,) in struct.iter_unpack(f"{stride}s", raw[: len(raw) - len(raw) % stride]):
            update(page)
            digests.append(digest())
        return digests


def prefix_hashes(root: bytes, token_ids: Sequence[int], page_size: int) -> list[bytes]:
    """Return the hashes of every full page of `token_ids`, in order; a partial last page has none."""
    return PrefixHasher(root).hashes(token_bytes(token_ids), page_size)


def short_hash(full: bytes) -> int:
    """Return the first 8 bytes of a page hash as a little-endian number: the form in events and directories."""
    return int.from_bytes(full[:SHORT_HASH_BYTES], "little")
