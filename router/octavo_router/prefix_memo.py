"""Remembers the page hashes of prefixes that were found at an engine, so that a prefix that comes again is not hashed again.

A prefix is remembered in groups of pages, each by what it is: the hash that comes before it, and its token ids. The key is
these very bytes and no digest of them, so that no two groups can be taken for each other.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from octavo.page_hash import PrefixHasher

# What an entry takes beside its token ids and hashes: its objects and its place in the table.
_ENTRY_BYTES: Final = 900


@dataclass(frozen=True, slots=True)
class Group:
    """Short hashes of a group's pages, side by side in memory, and what hashes the pages behind them; nobody moves it on."""

    hashes: array[int]
    hasher: PrefixHasher


class PrefixMemo:
    """Groups of pages, the least recently used dropped first.

    Args:
        max_bytes: most memory that it may take, about; 0 remembers nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._groups: OrderedDict[bytes, Group] = OrderedDict()

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, key: bytes) -> Group | None:
        """Return the group that follows a hash with these token ids, both in `key`."""
        group = self._groups.get(key)
        if group is not None:
            self._groups.move_to_end(key)
        return group

    def remember(self, key: bytes, group: Group) -> None:
        """Remember a group that is worth it."""
        size = _size(key, group)
        if size > self._max_bytes or key in self._groups:
            return
        self._groups[key] = group
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= _size(*self._groups.popitem(last=False))

    def check(self) -> None:
        """Assert that the bytes are counted right and bounded. For tests."""
        assert self._num_bytes == sum(_size(*item) for item in self._groups.items())  # noqa: S101  what check() is for
        assert self._num_bytes <= self._max_bytes  # noqa: S101


def _size(key: bytes, group: Group) -> int:
    return _ENTRY_BYTES + len(key) + group.hashes.itemsize * len(group.hashes)
