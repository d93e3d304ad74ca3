"""Knows the tokens of resident pages: gateways hash prefixes in their own way, so they must be told tokens.

The core tells which pages are resident by short hash alone. Whoever submits a request knows its tokens, and so the hash
of each page that it will fill; the ledger joins the two. A page is *told* when it is resident, its tokens are known and
the page before it is told, so a gateway always hears of a prefix from its start.

    note(tokens) ---> known ---+
                               +--> told ---> PageChange(stored | removed)
    step(hashes) -> resident --+

Pages filled only by requests whose tokens nobody noted stay untold: a gateway learns what it sent itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.page_hash import PrefixHasher, token_bytes

MAX_KNOWN: Final = 1 << 16
"""Pages whose tokens are remembered before they are resident. Beyond, the oldest are forgotten: a gateway sees fewer hits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A full page of tokens.

    Attributes:
        short_hash: its name in events.
        parent: short hash of the page before it; None for a first page.
        depth: number of pages before it.
        token_ids: its tokens.
    """

    short_hash: int
    parent: int | None
    depth: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PageChange:
    """What became true: pages stored, parents first, then short hashes removed."""

    stored: tuple[Page, ...]
    removed: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stored or self.removed)


class PageLedger:
    """The told pages. One event loop uses it."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self._max_known = max_known
        self._resident: set[int] = set()
        self._known: dict[int, Page] = {}  # not told, oldest first
        self._told: dict[int, Page] = {}

    def note(self, pages: Iterable[Page]) -> PageChange:
        """Remember the tokens of pages, parents first; return what can be told now."""
        stored = []
        for page in pages:
            if page.short_hash in self._told:
                continue
            self._known.pop(page.short_hash, None)  # the newest are forgotten last
            self._known[page.short_hash] = page
            stored += self._tell(page.short_hash)
        while len(self._known) > self._max_known:
            del self._known[next(iter(self._known))]
        return PageChange(tuple(stored))

    def apply(self, stored: Sequence[int], evicted: Sequence[int]) -> PageChange:
        """Take short hashes that became resident, then those that were evicted; return what can be told now."""
        self._resident.update(stored)
        told = [page for short in stored for page in self._tell(short)]
        self._resident.difference_update(evicted)
        removed = tuple(short for short in evicted if self._told.pop(short, None) is not None)
        return PageChange(tuple(told), removed)

    def told(self) -> list[Page]:
        """Return every told page that a prefix can reach, parents first."""
        reachable: dict[int, Page] = {}
        for page in sorted(self._told.values(), key=lambda page: page.depth):
            if page.parent is None or page.parent in reachable:
                reachable[page.short_hash] = page
        return list(reachable.values())

    def _tell(self, short: int) -> list[Page]:
        page = self._known.get(short)
        if page is None or short not in self._resident or not (page.parent is None or page.parent in self._told):
            return []
        del self._known[short]
        self._told[short] = page
        return [page]


class PageTrail:
    """Cuts a sequence that grows into full pages.

    Args:
        root: root of its page hashes, 16 bytes.
        page_size: tokens in a page.
    """

    def __init__(self, root: bytes, page_size: int) -> None:
        self._page_size = page_size
        self._hasher = PrefixHasher(root)
        self._parent: int | None = None
        self._depth = 0
        self._rest: list[int] = []

    def fork(self) -> PageTrail:
        """Return another trail that has come as far as this one."""
        other = PageTrail(b"", self._page_size)
        other._hasher, other._rest = self._hasher.copy(), list(self._rest)
        other._parent, other._depth = self._parent, self._depth
        return other

    def extend(self, token_ids: Sequence[int]) -> list[Page]:
        """Add tokens; return the pages that are full now."""
        tokens = [*self._rest, *token_ids]
        pages = []
        for index, short in enumerate(self._hasher.short_hashes(token_bytes(tokens), self._page_size)):
            page_tokens = tuple(tokens[index * self._page_size : (index + 1) * self._page_size])
            pages.append(Page(short_hash=short, parent=self._parent, depth=self._depth, token_ids=page_tokens))
            self._parent = short
            self._depth += 1
        self._rest = tokens[len(tokens) - len(tokens) % self._page_size :]
        return pages
