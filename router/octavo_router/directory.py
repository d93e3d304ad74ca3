"""A router's replica of which engine holds which page: sans-IO, rebuilt at any time from the engines' snapshots.

A page is named by the short hash of the prefix that ends with it, so a hash stands for its whole prefix, and one bit mask
per hash says which engines hold it. Beside the resident pages stand predicted ones: pages that a dispatched request will
leave behind. They count as held until they prove true or their time is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from operator import or_, xor

MAX_WAITING_CHANGES = 1024
PREDICTION_TTL_S = 5.0
MAX_PREDICTIONS = 1 << 20


class Outcome(Enum):
    """What became of a change or a snapshot."""

    APPLIED = "applied"
    STALE = "stale"  # known already, or of another epoch
    GAP = "gap"  # something is missing: fetch a snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PageChange:
    """Pages that one engine stored and evicted, as in octavo.v1.PageEvents."""

    epoch: int
    sequence: int
    stored: Sequence[int]
    evicted: Sequence[int]
    digest: int
    num_resident: int


@dataclass(slots=True)
class _Replica:
    engine_id: str
    bit: int
    epoch: int
    resident: set[int] = field(default_factory=set)
    predicted_until: dict[int, float] = field(default_factory=dict)
    digest: int = 0
    sequence: int | None = None  # None: a snapshot is needed
    waiting: deque[PageChange] = field(default_factory=lambda: deque(maxlen=MAX_WAITING_CHANGES))


class Directory:
    """Page hashes of all engines that this router knows. One task may use it."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._by_bit: dict[int, _Replica] = {}
        self._resident: dict[int, int] = {}
        self._predicted: dict[int, int] = {}
        self._unread: deque[tuple[float, _Replica, Sequence[int]]] = deque()  # predictions, by the time they were made
        self._predictions: deque[tuple[float, _Replica, Sequence[int]]] = deque()  # by the time at which they are over
        self._num_predictions = 0  # pages in them

    def join(self, engine_id: str, epoch: int) -> None:
        """Know an engine process; it holds nothing until its snapshot is here."""
        self.leave(engine_id)
        bit = 1
        while bit in self._by_bit:
            bit <<= 1
        self._replicas[engine_id] = self._by_bit[bit] = _Replica(engine_id, bit, epoch)

    def leave(self, engine_id: str) -> None:
        """Forget an engine and its pages."""
        self.settle()
        replica = self._replicas.pop(engine_id, None)
        if replica is None:
            return
        self._clear(replica)
        for page in list(replica.predicted_until):
            self._drop_prediction(replica, page)
        del self._by_bit[replica.bit]

    def apply(self, engine_id: str, change: PageChange) -> Outcome:
        """Apply a change. GAP asks for a snapshot; changes that arrive before it are kept and applied after it."""
        replica = self._replicas.get(engine_id)
        if replica is None or change.epoch != replica.epoch:
            return Outcome.STALE
        if replica.sequence is None:
            replica.waiting.append(change)
            return Outcome.GAP
        if change.sequence <= replica.sequence:
            return Outcome.STALE
        if change.sequence > replica.sequence + 1 or not self._apply(replica, change):
            replica.sequence = None
            replica.waiting.append(change)
            return Outcome.GAP
        return Outcome.APPLIED

    def reset(self, engine_id: str, *, epoch: int, sequence: int, hashes: Iterable[int], digest: int) -> Outcome:
        """Replace what is known of an engine by its snapshot, then apply the changes that came after it.

        A snapshot that is older than what is known is stale: the changes since would be lost.
        """
        replica = self._replicas.get(engine_id)
        if replica is None or epoch != replica.epoch:
            return Outcome.STALE
        if replica.sequence is not None and sequence < replica.sequence:
            return Outcome.STALE
        self._clear(replica)
        self._store(replica, hashes)
        waiting = [change for change in replica.waiting if change.sequence > sequence]
        replica.waiting.clear()
        if replica.digest != digest:
            replica.sequence = None
            return Outcome.GAP
        replica.sequence = sequence
        outcomes = {self.apply(engine_id, change) for change in waiting}
        return Outcome.GAP if Outcome.GAP in outcomes else Outcome.APPLIED

    def predict(self, engine_id: str, hashes: Sequence[int], now: float) -> None:
        """Count pages as held by an engine until PREDICTION_TTL_S from now; `now` never runs backwards.

        The hashes are not read before somebody looks, or `settle` is called: making them may take a while.
        """
        replica = self._replicas.get(engine_id)
        if replica is not None:
            self._unread.append((now, replica, hashes))

    def settle(self) -> None:
        """Read the hashes of the pages that were predicted, and clear away the predictions that are over."""
        while self._unread:
            now, replica, hashes = self._unread.popleft()
            self._expire(now)
            self._predict(replica, hashes[: MAX_PREDICTIONS - self._num_predictions], now + PREDICTION_TTL_S)

    def match(self, runs: Iterable[Sequence[int]], now: float) -> dict[str, int]:
        """Return for each engine the number of leading hashes that it holds. Reads no run behind the longest match.

        An engine that holds the last page of a run is taken to hold the whole run: engines give up the end of a prefix
        before its beginning. Of pages that are only predicted it may be wrong for a while; they are guesses anyway.

        Args:
            runs: the hashes in order, some at a time, no run empty.
            now: monotonic seconds.
        """
        self.settle()
        matched: dict[str, int] = dict.fromkeys(self._replicas, 0)
        alive = reduce(or_, self._by_bit, 0)
        depth = 0
        for run in runs if alive else ():
            if self._holders(run[-1], alive, now) != alive:
                for index, page in enumerate(run):
                    held = self._holders(page, alive, now)
                    if held != alive:
                        self._note(matched, alive & ~held, depth + index)
                        alive = held
                        if not alive:
                            return matched
            depth += len(run)
        self._note(matched, alive, depth)
        return matched

    def num_resident(self, engine_id: str) -> int:
        """Pages that an engine is known to hold."""
        replica = self._replicas.get(engine_id)
        return 0 if replica is None else len(replica.resident)

    def needs_snapshot(self, engine_id: str) -> bool:
        """Whether the replica of an engine is incomplete."""
        replica = self._replicas.get(engine_id)
        return replica is not None and replica.sequence is None

    def check(self) -> None:
        """Assert that masks, sets and digests agree. For tests."""
        self.settle()
        for replica in self._replicas.values():
            held = {page for page, mask in self._resident.items() if mask & replica.bit}
            assert held == replica.resident  # noqa: S101  this is what check() is for
            assert replica.digest == reduce(xor, replica.resident, 0)  # noqa: S101
            predicted = {page for page, mask in self._predicted.items() if mask & replica.bit}
            assert predicted == set(replica.predicted_until)  # noqa: S101
        known = reduce(or_, self._by_bit, 0)
        for mask in (*self._resident.values(), *self._predicted.values()):
            assert mask  # noqa: S101
            assert mask & ~known == 0  # noqa: S101
        assert self._num_predictions == sum(len(pages) for _, _, pages in self._predictions)  # noqa: S101

    def _note(self, matched: dict[str, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            matched[self._by_bit[bit].engine_id] = depth
            mask ^= bit

    def _apply(self, replica: _Replica, change: PageChange) -> bool:
        self._store(replica, change.stored)
        self.settle()  # what was predicted before
        for page in change.evicted:
            if page in replica.resident:
                replica.resident.remove(page)
                replica.digest ^= page
                _unset(self._resident, page, replica.bit)
            # Evicted for sure, whatever was predicted.
            self._drop_prediction(replica, page)
        replica.sequence = change.sequence
        return replica.digest == change.digest and len(replica.resident) == change.num_resident

    def _store(self, replica: _Replica, pages: Iterable[int]) -> None:
        for page in pages:
            if page not in replica.resident:
                replica.resident.add(page)
                replica.digest ^= page
                self._resident[page] = self._resident.get(page, 0) | replica.bit

    def _clear(self, replica: _Replica) -> None:
        for page in replica.resident:
            _unset(self._resident, page, replica.bit)
        replica.resident.clear()
        replica.digest = 0

    def _holders(self, page: int, asked: int, now: float) -> int:
        """Return which of the engines asked for hold a page, or are predicted to."""
        held = self._resident.get(page, 0) & asked
        # What is over may not be cleared away yet.
        mask = self._predicted.get(page, 0) & asked & ~held if held != asked else 0
        while mask:
            bit = mask & -mask
            if self._by_bit[bit].predicted_until[page] > now:
                held |= bit
            mask ^= bit
        return held

    def _predict(self, replica: _Replica, pages: Sequence[int], until: float) -> None:
        self._predictions.append((until, replica, pages))
        self._num_predictions += len(pages)
        replica.predicted_until.update(dict.fromkeys(pages, until))
        predicted, bit = self._predicted, replica.bit
        for page in pages:
            predicted[page] = predicted.get(page, 0) | bit

    def _expire(self, now: float) -> None:
        while self._predictions and self._predictions[0][0] <= now:
            until, replica, pages = self._predictions.popleft()
            self._num_predictions -= len(pages)
            for page in pages:
                if replica.predicted_until.get(page) == until:  # else it was renewed or dropped
                    self._drop_prediction(replica, page)

    def _drop_prediction(self, replica: _Replica, page: int) -> None:
        if replica.predicted_until.pop(page, None) is not None:
            _unset(self._predicted, page, replica.bit)


def _unset(masks: dict[int, int], page: int, bit: int) -> None:
    mask = masks.pop(page, 0) & ~bit
    if mask:
        masks[page] = mask
