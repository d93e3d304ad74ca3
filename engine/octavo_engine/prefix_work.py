"""Knows which running sequence is computing which prefix, so that nobody computes the same one beside it.

A sequence whose missing pages are being computed by another waits for them, outside the queue, if that saves it at least
half of its own work and the other goes before it anyway. It is released when the last page that both share is published,
or when the other gives up. Only the roster changes this.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from dataclasses import dataclass

from octavo_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Wait:
    page_hash: bytes
    num_tokens: int


class PrefixWork:
    """Pages in progress, and the sequences that wait for them."""

    def __init__(self) -> None:
        self._workers: dict[bytes, Sequence] = {}
        self._announced: dict[Sequence, list[bytes]] = {}
        self._waits: dict[Sequence, _Wait] = {}
        self._waiting_for: dict[bytes, list[Sequence]] = {}
        self._num_tokens = 0

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._waits

    @property
    def num_tokens(self) -> int:
        """Tokens that the waiting sequences will have to compute themselves."""
        return self._num_tokens

    def announce(self, sequence: Sequence, page_hashes: list[bytes]) -> None:
        """Note that a running sequence is going to compute these pages; a page has one worker, the first."""
        own = [page_hash for page_hash in page_hashes if self._workers.setdefault(page_hash, sequence) is sequence]
        self._announced[sequence] = own

    def worker(self, page_hash: bytes) -> Sequence | None:
        """Return who computes a page."""
        return self._workers.get(page_hash)

    def num_in_progress(self, page_hashes: list[bytes]) -> int:
        """Return how many of these pages, from the first on, are being computed."""
        for index, page_hash in enumerate(page_hashes):
            if page_hash not in self._workers:
                return index
        return len(page_hashes)

    def wait(self, sequence: Sequence, page_hash: bytes, num_tokens: int) -> None:
        """Let a sequence wait for a page in progress; `num_tokens` remain for it to compute then."""
        self._waits[sequence] = _Wait(page_hash, num_tokens)
        self._waiting_for.setdefault(page_hash, []).append(sequence)
        self._num_tokens += num_tokens

    def finish(self, page_hash: bytes) -> list[Sequence]:
        """Note that a page is in progress no more; return the sequences that waited for it."""
        self._workers.pop(page_hash, None)
        released = self._waiting_for.pop(page_hash, [])
        for sequence in released:
            self._num_tokens -= self._waits.pop(sequence).num_tokens
        return released

    def withdraw(self, sequence: Sequence) -> list[Sequence]:
        """Note that a sequence computes nothing more; return the sequences that waited for it."""
        released: list[Sequence] = []
        for page_hash in self._announced.pop(sequence, []):
            if self._workers.get(page_hash) is sequence:
                released += self.finish(page_hash)
        return released

    def leave(self, sequence: Sequence) -> None:
        """Take out a waiting sequence; one that does not wait is ignored."""
        wait = self._waits.pop(sequence, None)
        if wait is not None:
            self._num_tokens -= wait.num_tokens
            others = self._waiting_for[wait.page_hash]
            others.remove(sequence)
            if not others:
                del self._waiting_for[wait.page_hash]

    def check(self, running: set[Sequence]) -> None:
        """Assert that every wait has an end: each awaited page has a worker, and each worker runs."""
        assert set(self._workers.values()) <= running
        assert set(self._announced) <= running
        assert all(page_hash in self._announced[worker] for page_hash, worker in self._workers.items())
        assert self._waiting_for.keys() <= self._workers.keys(), "a sequence waits for a page that nobody computes"
        waits = {sequence for sequences in self._waiting_for.values() for sequence in sequences}
        assert waits == self._waits.keys()
        assert self._num_tokens == sum(wait.num_tokens for wait in self._waits.values())
