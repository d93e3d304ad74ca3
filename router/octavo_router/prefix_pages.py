"""The short hashes of a prompt's pages, hashed no further than somebody has read, and not twice what is remembered."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final, overload

from octavo.page_hash import PrefixHasher, token_bytes

from octavo_router.prefix_memo import Group, PrefixMemo

# Pages that are hashed, read and remembered at once.
GROUP_PAGES: Final = 32
# Few at first: that nobody holds a prompt shows at its first page.
_FIRST_PAGES: Final = 8


class PrefixPages:
    """The full pages of one prompt under one root.

    Whoever looks for the prompt stops at the first page that nobody holds; what lies behind it need not be hashed for that.
    A group is remembered when the next one is asked for: then all of it was found, and others may come with it. What is
    never found again would only push out what is.
    """

    def __init__(self, root: bytes, token_ids: Sequence[int], page_size: int, memo: PrefixMemo) -> None:
        self._token_ids = token_ids
        self._page_size = page_size
        self._num_pages = len(token_ids) // page_size
        self._memo = memo
        self._known: list[int] = []
        self._hasher = PrefixHasher(root)  # has come as far as what is known
        self._raw = b""  # token ids of the group that is being hashed
        self._key: bytes | None = None  # of that group, until it is remembered

    def __len__(self) -> int:
        return self._num_pages

    def runs(self, num_pages: int) -> Iterator[Sequence[int]]:
        """Yield the hashes of the first pages in order, some at a time, hashed when they are asked for."""
        start, stop = 0, min(num_pages, self._num_pages)
        while start < stop:
            if start == len(self._known):
                self._extend()
            run = self._known[start : min(start + GROUP_PAGES, stop)]
            yield run
            start += len(run)

    def after(self, num_pages: int) -> Sequence[int]:
        """Return the hashes of all pages but the first `num_pages`; they too are made when they are read."""
        return _Rest(self, num_pages)

    def whole(self) -> list[int]:
        """Hash what is not hashed yet, and return all of it."""
        rest = self._token_ids[len(self._known) * self._page_size :]
        if len(rest) >= self._page_size:
            self._add(token_bytes(rest))
        # Notes of a placement outlive the prompt, and need its hashes only.
        self._token_ids, self._raw, self._key = (), b"", None
        return self._known

    def _extend(self) -> None:
        start = len(self._known)
        offset = start % GROUP_PAGES
        if offset == 0:
            self._remember()
            first = start * self._page_size
            self._raw = token_bytes(self._token_ids[first : first + GROUP_PAGES * self._page_size])
            key = self._hasher.prefix_hash + self._raw
            group = self._memo.find(key)
            if group is not None:
                self._known += group.hashes
                self._hasher = group.hasher.copy()
                return
            self._key = key
        end = GROUP_PAGES if start else _FIRST_PAGES
        stride = 4 * self._page_size
        self._add(self._raw[offset * stride : end * stride])

    def _remember(self) -> None:
        if self._key is not None:
            self._memo.remember(self._key, Group(array("Q", self._known[-GROUP_PAGES:]), self._hasher.copy()))
            self._key = None

    def _add(self, raw: bytes) -> None:
        self._known += self._hasher.short_hashes(raw, self._page_size)


class _Rest(Sequence[int]):
    def __init__(self, pages: PrefixPages, first: int) -> None:
        self._pages = pages
        self._first = first

    def __len__(self) -> int:
        return max(0, len(self._pages) - self._first)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        return self._pages.whole()[self._first :][index]

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])
