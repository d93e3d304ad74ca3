from __future__ import annotations

import pytest
from octavo_engine.pages import PagePool

HASHES = [bytes([index]) * 16 for index in range(1, 9)]


@pytest.fixture
def pool() -> PagePool:
    return PagePool(num_pages=4, page_size=4)


def published(pool: PagePool, num_pages: int, first_hash: int = 0) -> list[int]:
    """Take pages and publish them under consecutive hashes."""
    table = pool.take(num_pages)
    for index, page in enumerate(table):
        assert pool.publish(page, HASHES[first_hash + index])
    return table


def test_a_new_pool_is_free(pool: PagePool):
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (4, 0, 0)


def test_pages_are_taken_once(pool: PagePool):
    table = pool.take(3)
    assert len(set(table)) == 3
    pool.check([table])
    assert pool.num_available == 1


def test_taking_more_than_available_takes_nothing(pool: PagePool):
    table = pool.take(3)
    with pytest.raises(AssertionError, match="2 pages asked, 1 available"):
        pool.take(2)
    pool.check([table])


def test_a_released_page_without_a_hash_is_free(pool: PagePool):
    pool.release(pool.take(2))
    assert (pool.num_free, pool.num_cached) == (4, 0)


def test_releasing_a_free_page_is_a_bug(pool: PagePool):
    table = pool.take(1)
    pool.release(table)
    with pytest.raises(AssertionError, match="released by nobody"):
        pool.release(table)


def test_last_release_makes_a_published_page_evictable(pool: PagePool):
    table = published(pool, 1)
    fork = pool.fork(table)
    pool.release(table)
    assert pool.num_cached == 0
    pool.release(fork)
    assert (pool.num_cached, pool.num_in_use) == (1, 0)
    pool.check([])


def test_a_match_holds_the_longest_resident_prefix(pool: PagePool):
    table = published(pool, 3)
    pool.release(table)
    assert pool.match([HASHES[0], HASHES[1], HASHES[7], HASHES[2]]) == table[:2]
    pool.check([table[:2]])
    assert (pool.num_in_use, pool.num_cached) == (2, 1)


def test_a_prefix_without_its_beginning_is_no_hit(pool: PagePool):
    pool.release(published(pool, 2))
    assert pool.match([HASHES[1]]) != []
    assert pool.match([HASHES[5], HASHES[0]]) == []


def test_a_match_of_pages_in_use_shares_them(pool: PagePool):
    table = published(pool, 2)
    hit = pool.match(HASHES[:2])
    assert hit == table
    assert all(map(pool.is_shared, table))
    pool.check([table, hit])


def test_taking_evicts_cached_pages_when_none_is_free(pool: PagePool):
    pool.release(published(pool, 3))
    table = pool.take(4)
    assert pool.num_resident == 0
    pool.check([table])


def test_the_tail_of_a_freed_sequence_is_evicted_before_its_head(pool: PagePool):
    pool.release(published(pool, 3))
    pool.take(2)
    assert pool.num_resident_prefix(HASHES[:3]) == 2


def test_the_prefix_used_last_is_evicted_last(pool: PagePool):
    old, new = published(pool, 1), published(pool, 1, first_hash=1)
    pool.release(old)
    pool.release(new)
    pool.release(pool.match([HASHES[0]]))
    pool.take(3)
    assert pool.num_resident_prefix([HASHES[0]]) == 1
    assert pool.num_resident_prefix([HASHES[1]]) == 0


def test_an_own_page_is_written_in_place(pool: PagePool):
    table = pool.take(1)
    assert pool.writable(table, 0) is None


def test_a_shared_page_is_copied_before_a_write(pool: PagePool):
    table = pool.take(2)
    fork = pool.fork(table)
    copy = pool.writable(fork, 1)
    assert copy == (table[1], fork[1])
    assert fork[0] == table[0]
    assert fork[1] != table[1]
    pool.check([table, fork])
    assert pool.writable(table, 1) is None


def test_a_published_page_is_copied_even_if_nobody_shares_it(pool: PagePool):
    table = published(pool, 1)
    (page,) = table
    assert pool.writable(table, 0) == (page, table[0])
    assert (pool.num_cached, pool.num_in_use) == (1, 1)
    pool.check([table])


def test_a_duplicate_of_a_resident_page_stays_private(pool: PagePool):
    resident = published(pool, 1)
    duplicate = pool.take(1)
    assert not pool.publish(duplicate[0], HASHES[0])
    pool.check([resident, duplicate])
    pool.release(duplicate)
    assert pool.num_free == 3
    assert pool.match([HASHES[0]]) == resident


def test_flush_drops_cached_pages_and_keeps_those_in_use(pool: PagePool):
    pool.release(published(pool, 1))
    table = published(pool, 1, first_hash=1)
    assert pool.flush() == 1
    assert pool.num_cached == 0
    assert pool.num_resident_prefix([HASHES[1]]) == 1
    pool.check([table])


def test_check_finds_a_lost_reference(pool: PagePool):
    table = pool.take(2)
    with pytest.raises(AssertionError, match="a reference is lost"):
        pool.check([table[:1]])


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_pages_for_rounds_up(pool: PagePool, num_tokens: int, num_pages: int):
    assert pool.pages_for(num_tokens) == num_pages


@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(num_pages: int, page_size: int):
    with pytest.raises(ValueError, match="holds nothing"):
        PagePool(num_pages=num_pages, page_size=page_size)
