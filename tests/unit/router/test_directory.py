from __future__ import annotations

from functools import reduce
from itertools import accumulate, pairwise
from operator import xor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo_router.directory import PREDICTION_TTL_S, Directory, Outcome, PageChange

PAGES = st.sets(st.integers(1, 12), max_size=4)


class EngineCache:
    """The truth about one engine: what it holds, and the changes that it told."""

    def __init__(self, epoch=1):
        self.epoch = epoch
        self.held = set()
        self.sequence = 0

    def change(self, stored, evicted=()):
        stored = [page for page in stored if page not in self.held]
        self.held |= set(stored)
        evicted = [page for page in evicted if page in self.held]
        self.held -= set(evicted)
        self.sequence += 1
        return PageChange(
            epoch=self.epoch,
            sequence=self.sequence,
            stored=stored,
            evicted=evicted,
            digest=reduce(xor, self.held, 0),
            num_resident=len(self.held),
        )

    def snapshot(self):
        return {
            "epoch": self.epoch,
            "sequence": self.sequence,
            "hashes": list(self.held),
            "digest": reduce(xor, self.held, 0),
        }


def joined(*names):
    directory = Directory()
    for name in names:
        directory.join(name, 1)
        directory.reset(name, **EngineCache().snapshot())
    return directory


def test_match_counts_leading_pages_of_all_engines_at_once():
    directory = joined("a", "b", "c")
    directory.apply("a", EngineCache().change([1, 2, 3]))
    directory.apply("b", EngineCache().change([1, 3]))
    assert directory.match([[1, 2, 3, 4]], 0.0) == {"a": 3, "b": 1, "c": 0}
    assert directory.match([], 0.0) == {"a": 0, "b": 0, "c": 0}


def test_match_reads_no_further_than_the_longest_prefix_that_is_held():
    directory = joined("a", "b")
    directory.apply("a", EngineCache().change([1, 2]))
    runs = iter([[1, 2, 3], [4, 5]])
    assert directory.match(runs, 0.0) == {"a": 2, "b": 0}
    assert list(runs) == [[4, 5]]


def test_pages_that_are_resident_and_predicted_match_as_one_prefix():
    directory = joined("a", "b")
    directory.apply("a", EngineCache().change([1, 3]))
    directory.predict("a", [2, 4], 0.0)
    directory.predict("b", [1, 2], 0.0)
    assert directory.match([[1, 2, 3, 4, 5]], 0.0) == {"a": 4, "b": 2}
    directory.check()


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10), st.integers(0, 10)), max_size=6),
    st.lists(st.integers(1, 4), max_size=4),
)
def test_match_is_the_same_however_the_hashes_are_cut_into_runs(history, lengths):
    directory, caches = joined("a", "b", "c"), {name: EngineCache() for name in "abc"}
    held = dict.fromkeys("abc", 0)
    for name, stored, predicted in history:  # each engine holds a prefix, its end perhaps predicted
        directory.apply(name, caches[name].change(range(stored)))
        directory.predict(name, range(stored, predicted), 0.0)
        held[name] = max(held[name], stored, predicted)
    ends = list(accumulate(lengths, initial=0))
    runs = [range(start, end) for start, end in pairwise(ends)]
    expected = {name: min(num_pages, ends[-1]) for name, num_pages in held.items()}
    assert directory.match(runs, 0.0) == directory.match([[page] for page in range(ends[-1])], 0.0) == expected


def test_evicted_page_ends_the_match():
    directory, cache = joined("a"), EngineCache()
    directory.apply("a", cache.change([1, 2, 3]))
    directory.apply("a", cache.change([], [3, 2]))
    assert directory.match([[1, 2, 3]], 0.0) == {"a": 1}


def test_missing_change_is_a_gap_and_the_snapshot_closes_it():
    directory, cache = joined("a"), EngineCache()
    cache.change([1])
    assert directory.apply("a", cache.change([2])) is Outcome.GAP
    snapshot = cache.snapshot()
    assert directory.apply("a", cache.change([3])) is Outcome.GAP, "kept until the snapshot is here"
    assert directory.reset("a", **snapshot) is Outcome.APPLIED
    assert directory.match([[1, 2, 3]], 0.0) == {"a": 3}
    assert not directory.needs_snapshot("a")


def test_change_that_came_over_both_ways_is_applied_once():
    directory, cache = joined("a"), EngineCache()
    change = cache.change([1])
    assert [directory.apply("a", change) for _ in range(2)] == [Outcome.APPLIED, Outcome.STALE]
    directory.check()


def test_wrong_digest_is_a_gap():
    directory, cache = joined("a"), EngineCache()
    cache.held = {9}  # the engine holds what it never told
    assert directory.apply("a", cache.change([1])) is Outcome.GAP


@pytest.mark.parametrize("engine_id", ["a", "unknown"])
def test_change_of_another_epoch_or_engine_is_stale(engine_id):
    directory = joined("a")
    assert directory.apply(engine_id, EngineCache(epoch=2).change([1])) is Outcome.STALE
    assert directory.reset(engine_id, **EngineCache(epoch=2).snapshot()) is Outcome.STALE


def test_engine_that_left_holds_nothing_when_it_is_back():
    directory = joined("a", "b")
    for name in ("a", "b"):
        directory.apply(name, EngineCache().change([1]))
        directory.predict(name, [2], 0.0)
    directory.leave("a")
    assert directory.match([[1, 2]], 0.0) == {"b": 2}
    directory.join("a", 2)
    assert directory.match([[1, 2]], 0.0) == {"a": 0, "b": 2}
    directory.check()


def test_prediction_counts_until_its_time_is_up_or_it_proves_false():
    directory, cache = joined("a"), EngineCache()
    directory.predict("a", [1, 2, 3], 10.0)
    assert directory.match([[1, 2, 3]], 10.0) == {"a": 3}
    directory.apply("a", cache.change([1, 3]))
    directory.apply("a", cache.change([], [3]))
    assert directory.match([[1, 2, 3]], 10.0) == {"a": 2}
    assert directory.match([[1, 2, 3]], 10.0 + PREDICTION_TTL_S) == {"a": 1}
    directory.check()


def test_prediction_that_is_renewed_lives_on():
    directory = joined("a")
    directory.predict("a", [1], 0.0)
    directory.predict("a", [1], 4.0)
    assert directory.match([[1]], 6.0) == {"a": 1}
    assert directory.match([[1]], 9.0) == {"a": 0}


class Unmade(list):
    """Hashes that note when they are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_predicted_pages_are_read_when_somebody_looks_or_when_told_to():
    directory = joined("a")
    looked, told = Unmade([1]), Unmade([2])
    directory.predict("a", looked, 0.0)
    assert looked.reads == 0
    assert directory.match([[1]], 0.0) == {"a": 1}
    directory.predict("a", told, 0.0)
    directory.settle()
    directory.settle()
    assert (looked.reads, told.reads) == (1, 1)


def test_eviction_ends_a_prediction_that_nobody_has_read_yet():
    directory, cache = joined("a"), EngineCache()
    directory.apply("a", cache.change([1]))
    directory.predict("a", [1], 0.0)
    directory.apply("a", cache.change([], [1]))
    assert directory.match([[1]], 0.0) == {"a": 0}


def test_no_more_pages_are_predicted_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr("octavo_router.directory.MAX_PREDICTIONS", 3)
    directory = joined("a")
    directory.predict("a", [1, 2], 0.0)
    directory.predict("a", [3, 4], 1.0)
    directory.predict("a", [5], 1.0)
    assert directory.match([[1, 2, 3, 4]], 1.0) == {"a": 3}
    directory.predict("a", [5, 6, 7], PREDICTION_TTL_S)
    assert directory.match([[5, 6, 7]], PREDICTION_TTL_S) == {"a": 2}, "the first two are over, the third is not"
    directory.check()


def test_prediction_of_an_engine_that_left_is_not_taken_for_its_successor():
    directory = joined("a")
    directory.predict("a", [1], 0.0)
    directory.leave("a")
    directory.join("b", 1)
    directory.predict("b", [1], 0.0)
    assert directory.match([[1]], 1.0) == {"b": 1}
    assert directory.match([[1]], PREDICTION_TTL_S) == {"b": 0}
    directory.check()


@given(
    st.lists(st.tuples(st.sampled_from("ab"), PAGES, PAGES, st.sampled_from(["tell", "lose", "twice", "restart"]))),
)
def test_replica_equals_the_engines_after_any_events_and_one_snapshot(history):
    directory, caches = joined("a", "b"), {"a": EngineCache(), "b": EngineCache()}
    for name, stored, evicted, fate in history:
        if fate == "restart":
            caches[name] = EngineCache(epoch=caches[name].epoch + 1)
            directory.join(name, caches[name].epoch)
            continue
        change = caches[name].change(stored, evicted)
        for _ in range({"tell": 1, "lose": 0, "twice": 2}[fate]):
            directory.apply(name, change)
        directory.check()
    for name, cache in caches.items():
        directory.apply(name, cache.change([]))  # the next event shows what was lost
        if directory.needs_snapshot(name):
            assert directory.reset(name, **cache.snapshot()) is Outcome.APPLIED
        for page in range(1, 13):
            assert directory.match([[page]], 0.0)[name] == (page in cache.held)
    directory.check()


def test_snapshot_that_is_older_than_what_is_known_changes_nothing():
    directory, cache = joined("a"), EngineCache()
    directory.apply("a", cache.change([1]))
    snapshot = cache.snapshot()
    directory.apply("a", cache.change([2]))
    assert directory.reset("a", **snapshot) is Outcome.STALE
    assert directory.match([[1, 2]], 0.0) == {"a": 2}
    assert directory.apply("a", cache.change([3])) is Outcome.APPLIED
    directory.check()
