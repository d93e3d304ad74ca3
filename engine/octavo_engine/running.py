"""Keeps the sequences that hold slots and pages, and takes both back. Only the scheduler changes it.

Pages and slots of a sequence that leaves while a planned step still works on it are *retired*: nobody else gets them
before that step's results have been read, so no planned step can ever write to a page of another sequence.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from octavo_engine.pages import PagePool
from octavo_engine.sequence import Priority, Sequence, State


@dataclass(frozen=True, slots=True)
class _Retired:
    last_step: int
    slot: int
    block_table: list[int]


class RunningSet:
    """Running sequences, oldest first; a BATCH request counts as if it had arrived later by the allowance.

    Args:
        pool: where the pages of leaving sequences go.
        num_slots: most running sequences.
        allowance_ns: how much later a BATCH request counts as arrived.
    """

    def __init__(self, pool: PagePool, *, num_slots: int, allowance_ns: int) -> None:
        self.num_slots = num_slots
        self._pool = pool
        self._allowance_ns = allowance_ns
        self._sequences: list[Sequence] = []
        self._free_slots = list(range(num_slots - 1, -1, -1))
        self._retired: list[_Retired] = []
        self._generation = 0
        self._read_step = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def has_free_slot(self) -> bool:
        """Whether one more sequence can run."""
        return bool(self._free_slots)

    @property
    def has_retired(self) -> bool:
        """Whether pages and slots come free when the steps in flight have been read."""
        return bool(self._retired)

    def is_in_flight(self, sequence: Sequence) -> bool:
        """Tell whether a step that works on the sequence has not been read yet."""
        return sequence.last_step > self._read_step

    def due_ns(self, sequence: Sequence) -> int:
        """Return the time of arrival, later by the allowance for BATCH."""
        return self._rank(sequence)[0]

    def join(self, sequence: Sequence, block_table: list[int]) -> None:
        """Give a sequence a slot and its pages: it runs."""
        self._generation += 1
        sequence.state = State.RUNNING
        sequence.slot = self._free_slots.pop()
        sequence.generation = self._generation
        sequence.block_table = block_table
        sequence.frozen_table = tuple(block_table)
        insort(self._sequences, sequence, key=self._rank)

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence's slot and pages away; the caller sets its next state."""
        del self._sequences[bisect_left(self._sequences, self._rank(sequence), key=self._rank)]
        assert sequence.slot is not None
        retired = _Retired(sequence.last_step, sequence.slot, sequence.block_table)
        sequence.slot = None
        sequence.block_table = []
        sequence.frozen_table = ()
        if self.is_in_flight(sequence):
            self._retired.append(retired)
        else:
            self._give_back(retired)

    def note_read(self, step_id: int) -> None:
        """Note that the results of a step, and of all before it, have been read."""
        self._read_step = step_id

    def settle(self) -> None:
        """Give back what no step in flight works on any more."""
        settled = [retired for retired in self._retired if retired.last_step <= self._read_step]
        self._retired = [retired for retired in self._retired if retired.last_step > self._read_step]
        for retired in settled:
            self._give_back(retired)

    def victim(self, *, protected: Sequence | None, last_victim: Sequence | None, now_ns: int) -> Sequence:
        """Return the sequence to preempt: lowest class, then least lost, then youngest.

        Args:
            protected: the one that must make progress, never chosen.
            last_victim: the one preempted last, chosen only if there is no other.
            now_ns: a BATCH request that has waited longer than its allowance counts as interactive.
        """
        candidates = [sequence for sequence in self._sequences if sequence is not protected]
        others = [sequence for sequence in candidates if sequence is not last_victim]

        def loss(sequence: Sequence) -> tuple[bool, int, int, int, int]:
            due_ns, key, choice = self._rank(sequence)
            is_batch = sequence.request.priority is Priority.BATCH and due_ns > now_ns
            return (not is_batch, self._num_tokens_lost(sequence), -due_ns, -key, -choice)

        return min(others or candidates, key=loss)

    def check(self) -> None:
        """Assert that slots, pages and order agree."""
        slots = [sequence.slot for sequence in self._sequences if sequence.slot is not None]
        slots += [retired.slot for retired in self._retired]
        assert sorted([*slots, *self._free_slots]) == list(range(self.num_slots)), "a slot is lost or shared"
        assert self._sequences == sorted(self._sequences, key=self._rank)
        generations = [sequence.generation for sequence in self._sequences]
        assert len(set(generations)) == len(generations)
        assert all(retired.last_step > self._read_step for retired in self._retired)
        for sequence in self._sequences:
            assert sequence.state is State.RUNNING
            self._check_pages(sequence)
        retired_tables = [retired.block_table for retired in self._retired]
        self._pool.check([*(sequence.block_table for sequence in self._sequences), *retired_tables])

    def _check_pages(self, sequence: Sequence) -> None:
        table, page_size = sequence.block_table, self._pool.page_size
        assert self._pool.pages_for(sequence.num_computed) <= len(table), "computed tokens without a page"
        assert sequence.frozen_table == tuple(table[: len(sequence.frozen_table)]), "a page changed in mid-run"
        first_written = sequence.num_computed // page_size
        assert all(map(self._pool.is_writable, table[first_written:])), "a page to be written is shared"
        assert sequence.num_published <= first_written, "a page is published before it is full"
        assert len(sequence.page_hashes) >= sequence.num_published

    def _rank(self, sequence: Sequence) -> tuple[int, int, int]:
        request = sequence.request
        allowance_ns = self._allowance_ns if request.priority is Priority.BATCH else 0
        return (request.arrival_ns + allowance_ns, request.key, sequence.choice)

    def _num_tokens_lost(self, sequence: Sequence) -> int:
        """Count computed tokens on pages that nobody else holds. Shared pages lead the block table."""
        num_shared = 0
        for page in sequence.block_table:
            if not self._pool.is_shared(page):
                break
            num_shared += 1
        return max(0, sequence.num_computed - num_shared * self._pool.page_size)

    def _give_back(self, retired: _Retired) -> None:
        self._pool.release(retired.block_table)
        self._free_slots.append(retired.slot)
