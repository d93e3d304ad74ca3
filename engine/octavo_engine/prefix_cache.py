"""Remembers which page holds which prefix, and gives up the least useful pages first. Only the page pool changes it.

A page that has a hash is *resident*: any sequence whose tokens give the same hash may read it, so nobody writes it again.
While no sequence holds a resident page it is *cached*: kept, but evictable, oldest release first. Sequences release
their pages tail first, so the end of a prefix leaves before its beginning.

Two sequences may compute the same prefix at once. The first page to be full is resident, the other is its *twin*: private,
but known, so that no prefix loses its beginning. If the resident page is evicted while a twin is held, the twin takes its
place, and when a twin is released, that counts as a release of the resident page. So whoever holds a page of a prefix holds
all before it, which routers rely on.

Other processes learn of changes by short hashes, 8 of the 16 bytes. Two resident pages may have the same short hash;
it counts as stored when the first comes and as evicted when the last goes, so a reader that keeps a set agrees.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from dataclasses import dataclass

from octavo.page_hash import short_hash


@dataclass(frozen=True, slots=True)
class PageEvents:
    """Net changes since the last look: a short hash is in one list at most."""

    stored: list[int]
    evicted: list[int]


class PrefixCache:
    """Two-way map of page hashes and page ids, with the cached pages in order of eviction."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._cached: dict[int, None] = {}  # page ids, next to be evicted first
        self._twins: dict[bytes, dict[int, None]] = {}  # pages by their hash
        self._twin_hash: dict[int, bytes] = {}
        self._short_counts: dict[int, int] = {}
        self._stored: dict[int, None] = {}
        self._evicted: dict[int, None] = {}
        self._digest = 0

    @property
    def num_cached(self) -> int:
        """Resident pages that no sequence holds."""
        return len(self._cached)

    @property
    def num_resident(self) -> int:
        """Distinct short hashes of resident pages."""
        return len(self._short_counts)

    @property
    def digest(self) -> int:
        """Exclusive or of the distinct short hashes of resident pages."""
        return self._digest

    def page_of(self, page_hash: bytes) -> int | None:
        """Return the page that holds a prefix, if one is resident."""
        return self._page_of.get(page_hash)

    def is_resident(self, page: int) -> bool:
        """Tell whether a page has a hash."""
        return page in self._hash_of

    def is_cached(self, page: int) -> bool:
        """Tell whether a page is resident and held by nobody."""
        return page in self._cached

    def insert(self, page: int, page_hash: bytes) -> bool:
        """Make a page that a sequence holds resident; if another page has that hash already, make it a twin, return False."""
        resident = self._page_of.get(page_hash)
        if resident == page:
            return True
        assert page not in self._hash_of, f"page {page} already has another hash"
        if resident is not None:
            self._twins.setdefault(page_hash, {})[page] = None
            self._twin_hash[page] = page_hash
            if resident in self._cached:  # it was of use again: evict it later
                self.keep(resident)
            return False
        self._page_of[page_hash] = page
        self._hash_of[page] = page_hash
        self._count_stored(short_hash(page_hash))
        return True

    def keep(self, page: int) -> None:
        """Note that nobody holds a resident page now; of all cached pages it is evicted last."""
        assert page in self._hash_of, f"page {page} has no hash"
        self._cached.pop(page, None)
        self._cached[page] = None

    def let_go(self, page: int) -> bool:
        """Note that nobody holds a page now; return whether it is kept."""
        if page in self._hash_of:
            self.keep(page)
            return True
        page_hash = self._twin_hash.pop(page, None)
        if page_hash is not None:
            self._drop_twin(page, page_hash)
            resident = self._page_of[page_hash]
            if resident in self._cached:
                self.keep(resident)
        return False

    def take_back(self, page: int) -> None:
        """Note that a sequence holds a cached page again."""
        del self._cached[page]

    def evict(self) -> int:
        """Give up the cached page released longest ago; return it. Its prefix stays resident if there is a twin."""
        page = next(iter(self._cached))
        del self._cached[page]
        page_hash = self._hash_of.pop(page)
        del self._page_of[page_hash]
        twin = next(iter(self._twins.get(page_hash, ())), None)
        if twin is None:
            self._count_evicted(short_hash(page_hash))
            return page
        del self._twin_hash[twin]
        self._drop_twin(twin, page_hash)
        self._page_of[page_hash] = twin
        self._hash_of[twin] = page_hash
        return page

    def drain_events(self) -> PageEvents:
        """Return the changes since the last call, and forget them."""
        events = PageEvents(list(self._stored), list(self._evicted))
        self._stored.clear()
        self._evicted.clear()
        return events

    def check(self) -> None:
        """Assert that every map agrees with every other."""
        assert {page: page_hash for page_hash, page in self._page_of.items()} == self._hash_of
        assert self._cached.keys() <= self._hash_of.keys()
        twins = {twin: page_hash for page_hash, group in self._twins.items() for twin in group}
        assert twins == self._twin_hash
        assert all(self._twins.values())
        assert self._twins.keys() <= self._page_of.keys()
        assert self._twin_hash.keys().isdisjoint(self._hash_of)
        counts: dict[int, int] = {}
        for page_hash in self._page_of:
            counts[short_hash(page_hash)] = counts.get(short_hash(page_hash), 0) + 1
        assert counts == self._short_counts
        digest = 0
        for short in counts:
            digest ^= short
        assert digest == self._digest
        assert self._stored.keys() <= counts.keys()
        assert not self._evicted.keys() & counts.keys()

    def _drop_twin(self, page: int, page_hash: bytes) -> None:
        group = self._twins[page_hash]
        del group[page]
        if not group:
            del self._twins[page_hash]

    def _count_stored(self, short: int) -> None:
        count = self._short_counts.get(short, 0)
        self._short_counts[short] = count + 1
        if count == 0:
            self._digest ^= short
            if short in self._evicted:  # stored again before anyone heard of the eviction
                del self._evicted[short]
            else:
                self._stored[short] = None

    def _count_evicted(self, short: int) -> None:
        count = self._short_counts[short]
        if count > 1:
            self._short_counts[short] = count - 1
            return
        del self._short_counts[short]
        self._digest ^= short
        if short in self._stored:
            del self._stored[short]
        else:
            self._evicted[short] = None
