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
    return chain_of_bytes(root, token_bytes(token_ids), page_size)


def chain_of_bytes(root: bytes, raw: bytes, page_size: int) -> list[bytes]:
    """Return what `chain` does, for token ids that are bytes already (`token_bytes`)."""
    stride = 4 * page_size
    sha256 = hashlib.sha256  # looked up once: a router hashes the pages of every prompt
    hashes: list[bytes] = []
    parent = root
    for start in range(0, len(raw) - stride + 1, stride):
        parent = sha256(parent + raw[start : start + stride]).digest()[:HASH_BYTES]
        hashes.append(parent)
    return hashes


def short_hash(full: bytes) -> int:
    """Return the first 8 bytes of a page hash as a little-endian number: the form in events and directories."""
    return int.from_bytes(full[:SHORT_HASH_BYTES], "little")


def short_hashes(hashes: Sequence[bytes]) -> list[int]:
    """Return `short_hash` of each page hash, at a fraction of the cost of calling it for each."""
    words = array("Q", b"".join(hashes))
    if sys.byteorder != "little":
        words.byteswap()
    return words[:: HASH_BYTES // SHORT_HASH_BYTES].tolist()
