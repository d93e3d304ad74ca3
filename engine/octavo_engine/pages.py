"""Hands out KV pages and takes them back. Only the scheduler calls it, on one thread.

Every page is in one of three places, always:

    free     nobody holds it and it has no hash
    in use   ref_count sequences hold it; it may have a hash (resident), then it is never written again
    cached   nobody holds it, it has a hash, and `take` may evict it

A page with one holder and no hash may be written by its holder. Every other page is read-only: `writable` gives a copy.
That includes a resident page with one holder, because the next prefix hit may read it in the same step.
Each call costs O(1) per page that it names.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from octavo_engine.prefix_cache import PageEvents, PrefixCache


class Copy(NamedTuple):
    """A page to copy before a step writes anything."""

    source: int
    destination: int


class PagePool:
    """All pages of one engine, with reference counts and the prefix cache.

    Args:
        num_pages: pages, with ids 0 to num_pages - 1.
        page_size: tokens in a page.
    """

    def __init__(self, *, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"a pool of {num_pages} pages of {page_size} tokens holds nothing; both must be above 0")
        self.num_pages = num_pages
        self.page_size = page_size
        self._ref_counts = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._cache = PrefixCache()

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that hold reusable prefixes only."""
        return self._cache.num_cached

    @property
    def num_in_use(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.num_free - self.num_cached

    @property
    def num_available(self) -> int:
        """Pages that `take` can give."""
        return self.num_free + self.num_cached

    @property
    def num_resident(self) -> int:
        """Distinct short hashes of pages that a prefix hit can find."""
        return self._cache.num_resident

    @property
    def digest(self) -> int:
        """Exclusive or of those short hashes."""
        return self._cache.digest

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def take(self, num_pages: int) -> list[int]:
        """Return so many pages, each held once; evicts cached pages when no free ones are left.

        The caller has asked `num_available`: taking more is a bug, and then nothing is taken.
        """
        assert 0 <= num_pages <= self.num_available, f"{num_pages} pages asked, {self.num_available} available"
        pages = [self._free.pop() if self._free else self._cache.evict() for _ in range(num_pages)]
        for page in pages:
            self._ref_counts[page] = 1
        return pages

    def release(self, block_table: Iterable[int]) -> None:
        """Let go of each page once, the last first, so that the end of a prefix is evicted before its beginning."""
        for page in reversed(list(block_table)):
            count = self._ref_counts[page]
            assert count > 0, f"page {page} is released by nobody who holds it"
            self._ref_counts[page] = count - 1
            if count > 1:
                continue
            if not self._cache.let_go(page):
                self._free.append(page)

    def fork(self, block_table: Sequence[int]) -> list[int]:
        """Hold each page of a block table once more, for a sequence that shares it."""
        for page in block_table:
            assert self._ref_counts[page] > 0, f"page {page} is forked from nobody who holds it"
            self._ref_counts[page] += 1
        return list(block_table)

    def is_writable(self, page: int) -> bool:
        """Tell whether the page's one holder may write it."""
        return self._ref_counts[page] == 1 and not self._cache.is_resident(page)

    def is_shared(self, page: int) -> bool:
        """Tell whether more than one block table holds the page."""
        return self._ref_counts[page] > 1

    def writable(self, block_table: list[int], index: int) -> Copy | None:
        """Make entry `index` of a block table writable: copy-on-write.

        Returns the copy to make before the next write, or None if the page is writable as it is. Takes one page then.
        The source keeps its holders' references less this one: it must not be taken before the copy is planned.
        """
        source = block_table[index]
        if self.is_writable(source):
            return None
        (destination,) = self.take(1)
        block_table[index] = destination
        self.release([source])
        return Copy(source, destination)

    def match(self, page_hashes: Sequence[bytes]) -> list[int]:
        """Return the pages of the longest resident prefix, and hold each once."""
        pages = self._resident_prefix(page_hashes)
        for page in pages:
            if self._ref_counts[page] == 0:
                self._cache.take_back(page)
            self._ref_counts[page] += 1
        return pages

    def num_resident_prefix(self, page_hashes: Sequence[bytes]) -> int:
        """Return how many pages `match` would find; holds nothing."""
        return len(self._resident_prefix(page_hashes))

    def publish(self, page: int, page_hash: bytes) -> bool:
        """Make a full, computed page reusable. False if another page holds the same prefix: this one stays private.

        A private twin keeps its place in its holder's block table, which so never changes under a step in
        flight, and is free when released.
        """
        assert self._ref_counts[page] > 0, f"page {page} is published by nobody who holds it"
        return self._cache.insert(page, page_hash)

    def flush(self) -> int:
        """Evict every cached page; return how many."""
        num_pages = self.num_cached
        self._free.extend(self._cache.evict() for _ in range(num_pages))
        return num_pages

    def drain_events(self) -> PageEvents:
        """Return the changes of resident short hashes since the last call."""
        return self._cache.drain_events()

    def check(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Assert that the given block tables, and nobody else, hold the pages in use, and that no page is lost."""
        held = Counter(page for block_table in block_tables for page in block_table)
        self._cache.check()
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert all(self._ref_counts[page] == held[page] for page in range(self.num_pages)), "a reference is lost"
        in_use = 0
        for page, count in enumerate(self._ref_counts):
            places = (count > 0, page in free, self._cache.is_cached(page))
            assert sum(places) == 1, f"page {page} is (in use, free, cached) {places}"
            assert not (page in free and self._cache.is_resident(page)), f"free page {page} has a hash"
            in_use += count > 0
        assert self.num_free + in_use + self.num_cached == self.num_pages

    def _resident_prefix(self, page_hashes: Sequence[bytes]) -> list[int]:
        pages: list[int] = []
        for page_hash in page_hashes:
            page = self._cache.page_of(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages
