from __future__ import annotations

import pytest
from octavo_engine.prefix_cache import PrefixCache


def page_hash(short: int, rest: int = 0) -> bytes:
    return short.to_bytes(8, "little") + rest.to_bytes(8, "little")


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache()


def test_an_inserted_page_is_found_by_its_hash(cache: PrefixCache):
    assert cache.insert(3, page_hash(1))
    assert cache.page_of(page_hash(1)) == 3
    assert cache.page_of(page_hash(2)) is None


def test_a_second_page_of_the_same_hash_is_refused(cache: PrefixCache):
    cache.insert(3, page_hash(1))
    assert not cache.insert(4, page_hash(1))
    assert cache.page_of(page_hash(1)) == 3
    assert not cache.is_resident(4)


def test_inserting_a_page_again_changes_nothing(cache: PrefixCache):
    cache.insert(3, page_hash(1))
    cache.drain_events()
    assert cache.insert(3, page_hash(1))
    assert cache.drain_events().stored == []


def test_the_page_kept_longest_is_evicted_first(cache: PrefixCache):
    for page in (0, 1, 2):
        cache.insert(page, page_hash(page))
    for page in (2, 0, 1):
        cache.keep(page)
    assert [cache.evict() for _ in range(3)] == [2, 0, 1]


def test_a_page_in_use_is_not_evictable(cache: PrefixCache):
    cache.insert(0, page_hash(0))
    cache.keep(0)
    cache.take_back(0)
    assert cache.num_cached == 0
    assert cache.page_of(page_hash(0)) == 0


def test_a_duplicate_makes_the_cached_page_useful_again(cache: PrefixCache):
    for page in (0, 1):
        cache.insert(page, page_hash(page))
        cache.keep(page)
    cache.insert(7, page_hash(0))
    assert cache.evict() == 1


def test_events_tell_what_came_and_went(cache: PrefixCache):
    cache.insert(0, page_hash(5))
    assert cache.drain_events().stored == [5]
    cache.keep(0)
    cache.evict()
    events = cache.drain_events()
    assert (events.stored, events.evicted) == ([], [5])


def test_a_page_that_came_and_went_between_looks_is_not_told(cache: PrefixCache):
    cache.insert(0, page_hash(5))
    cache.keep(0)
    cache.evict()
    events = cache.drain_events()
    assert (events.stored, events.evicted) == ([], [])


def test_a_hash_that_went_and_came_back_between_looks_is_not_told(cache: PrefixCache):
    cache.insert(0, page_hash(5))
    cache.keep(0)
    cache.drain_events()
    cache.insert(cache.evict(), page_hash(5))
    events = cache.drain_events()
    assert (events.stored, events.evicted) == ([], [])
    assert cache.num_resident == 1


def test_the_digest_is_the_exclusive_or_of_resident_short_hashes(cache: PrefixCache):
    for page in (0, 1, 2):
        cache.insert(page, page_hash(page + 4))
        cache.keep(page)
    assert cache.digest == 4 ^ 5 ^ 6
    cache.evict()
    assert cache.digest == 5 ^ 6


def test_two_hashes_with_one_short_hash_count_once(cache: PrefixCache):
    cache.insert(0, page_hash(5, rest=1))
    cache.insert(1, page_hash(5, rest=2))
    assert cache.drain_events().stored == [5]
    assert (cache.digest, cache.num_resident) == (5, 1)
    for page in (0, 1):
        cache.keep(page)
    cache.evict()
    assert cache.drain_events().evicted == []
    assert (cache.digest, cache.num_resident) == (5, 1)
    cache.check()
    cache.evict()
    assert cache.drain_events().evicted == [5]
    assert (cache.digest, cache.num_resident) == (0, 0)
    cache.check()
