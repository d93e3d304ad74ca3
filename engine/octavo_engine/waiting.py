"""Orders the sequences that wait for admission. Only the scheduler changes it.

Each class of service has two lines: sequences that return (preempted, or siblings of a running choice) before those that
never ran. In a line, the one goes first that would be done first if it ran alone from its arrival on: a short prompt
overtakes a long one, but only if it arrives within the long one's own prefill time. That is shortest remaining prefill
first, with ageing. Between classes the same sum decides, a BATCH request counting as if it had arrived later by an
allowance: interactive work goes first, and nothing waits for ever.
"""

# ruff: noqa: S101 - an assertion states what only a bug in Octavo can break

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from octavo_engine.sequence import Priority, Sequence


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A sequence's place in the queue. Compared within one class; (key, choice) makes it unique."""

    is_fresh: bool
    due_ns: int
    key: int
    choice: int
    num_tokens: int = field(compare=False)
    sequence: Sequence = field(compare=False)


class WaitingQueue:
    """Sequences that are ready for admission, each at most once.

    Args:
        allowance_ns: how much later a BATCH request counts as arrived.
    """

    def __init__(self, *, allowance_ns: int) -> None:
        self._allowance_ns = {Priority.INTERACTIVE: 0, Priority.BATCH: allowance_ns}
        self._lines: dict[Priority, list[Place]] = {priority: [] for priority in Priority}
        self._places: dict[Sequence, Place] = {}
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._places

    @property
    def num_tokens(self) -> int:
        """Prefill tokens of all waiting sequences, less prefix hits foreseen when they came."""
        return self._num_tokens

    def push(self, sequence: Sequence, *, is_fresh: bool, num_tokens: int, prefill_ns: int) -> None:
        """Let a sequence wait.

        Args:
            sequence: the sequence.
            is_fresh: whether it never ran, and no choice of its request did.
            num_tokens: tokens that it must compute before it decodes, as far as known.
            prefill_ns: time that this takes.
        """
        assert sequence not in self._places, "a sequence waits twice"
        request = sequence.request
        place = Place(is_fresh, request.arrival_ns + prefill_ns, request.key, sequence.choice, num_tokens, sequence)
        insort(self._lines[request.priority], place)
        self._places[sequence] = place
        self._num_tokens += num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        place = self._places.pop(sequence)
        line = self._lines[sequence.request.priority]
        del line[bisect_left(line, place)]
        self._num_tokens -= place.num_tokens

    def head(self) -> Sequence | None:
        """Return the sequence to admit next."""
        heads = [line[0] for line in self._lines.values() if line]
        return min(heads, key=self._due_ns).sequence if heads else None

    def due_ns(self, sequence: Sequence) -> int:
        """Return when a waiting sequence counts as due; comparable between classes."""
        return self._due_ns(self._places[sequence])

    def check(self) -> None:
        """Assert that lines and places agree and that lines are in order."""
        for line in self._lines.values():
            assert line == sorted(line)
            assert all(self._places[place.sequence] is place for place in line)
        assert sum(map(len, self._lines.values())) == len(self._places)
        assert self._num_tokens == sum(place.num_tokens for place in self._places.values())

    def _due_ns(self, place: Place) -> int:
        return place.due_ns + self._allowance_ns[place.sequence.request.priority]
