"""Finds the pages that a sequence can start with, and publishes those that it has computed."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.page_hash import PrefixHasher, token_bytes

from octavo_engine.pages import Copy, PagePool
from octavo_engine.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Pages for all tokens of a sequence, some of them already computed.

    Attributes:
        block_table: the pages, held once each.
        num_computed: leading tokens that need no computing; at least the last token does.
        num_cached: those that a prefix hit found; the others come from a sibling.
        num_published: leading pages that are resident.
        copy: page to copy before the sequence's first step.
    """

    block_table: list[int]
    num_computed: int
    num_cached: int
    num_published: int
    copy: Copy | None


def hash_pages(sequence: Sequence, page_size: int) -> None:
    """Bring the sequence's page hashes up to its known tokens."""
    if sequence.hasher is None:
        sequence.hasher = PrefixHasher(sequence.request.page_hash_root)
    new_tokens = sequence.tokens[len(sequence.page_hashes) * page_size :]
    if len(new_tokens) >= page_size:
        sequence.page_hashes += sequence.hasher.hashes(token_bytes(new_tokens), page_size)


def reusable_hashes(sequence: Sequence, page_size: int) -> list[bytes]:
    """Return the hashes of the pages that a prefix hit may cover: not that of the last token, which is computed."""
    hash_pages(sequence, page_size)
    return sequence.page_hashes[: (sequence.length - 1) // page_size]


def publish_pages(pool: PagePool, sequence: Sequence, num_computed: int) -> list[bytes]:
    """Publish the running sequence's full pages below `num_computed`; return the hashes of those that are new."""
    num_full, num_published = num_computed // pool.page_size, sequence.num_published
    if num_full <= num_published:
        return []
    hash_pages(sequence, pool.page_size)
    for index in range(num_published, num_full):
        pool.publish(sequence.block_table[index], sequence.page_hashes[index])
    sequence.num_published = num_full
    return sequence.page_hashes[num_published:num_full]


def claim_by_match(pool: PagePool, sequence: Sequence, hashes: list[bytes], reserve: int) -> Claim | None:
    """Claim pages for a sequence, starting with resident ones; None, and no change, if they do not fit.

    Args:
        pool: the pool.
        sequence: the sequence; all its tokens are known.
        hashes: page hashes that may be matched, from the first page on.
        reserve: pages that must stay available.
    """
    hits = pool.match(hashes)
    num_new = pool.pages_for(sequence.length) - len(hits)
    if num_new + reserve > pool.num_available:
        pool.release(hits)
        return None
    num_computed = len(hits) * pool.page_size
    return Claim(
        block_table=hits + pool.take(num_new),
        num_computed=num_computed,
        num_cached=num_computed,
        num_published=len(hits),
        copy=None,
    )


def claim_by_fork(pool: PagePool, sequence: Sequence, source: Sequence, reserve: int) -> Claim | None:
    """Claim pages for a sequence, sharing a sibling's prompt; None, and no change, if they do not fit.

    The sequence computes its last prompt token again, if it has no output yet, to get logits for its own choice. The
    page of that token is copied, for the sibling goes on writing it.
    """
    num_computed = min(sequence.num_prompt, sequence.length - 1)
    num_shared = num_computed // pool.page_size
    if pool.pages_for(sequence.length) - num_shared + reserve > pool.num_available:
        return None
    block_table = pool.fork(source.block_table[: pool.pages_for(num_computed)])
    copy = pool.writable(block_table, num_shared) if num_shared < len(block_table) else None
    block_table += pool.take(pool.pages_for(sequence.length) - len(block_table))
    return Claim(
        block_table=block_table,
        num_computed=num_computed,
        num_cached=0,
        num_published=min(num_shared, source.num_published),
        copy=copy,
    )
