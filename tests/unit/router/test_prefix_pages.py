"""A prompt's short hashes, made lazily and remembered in groups."""

from __future__ import annotations

from array import array
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.page_hash import PrefixHasher, prefix_hashes, root_hash, short_hash
from octavo_router.prefix_memo import Group, PrefixMemo
from octavo_router.prefix_pages import GROUP_PAGES, PrefixPages

ROOT = root_hash(model_revision="m", tokenizer_revision="t", page_size=4)
NO_MEMO = PrefixMemo(0)


def tokens(count: int, start: int = 0) -> list[int]:
    return [7 * number % 1000 for number in range(start, start + count)]


def read(lazy: PrefixPages, num_pages: int) -> list[int]:
    """Find that many pages at some engine, and not the next one."""
    return list(islice(chain.from_iterable(lazy.runs(len(lazy))), num_pages + 1))[:num_pages]


def expected_hashes(root: bytes, token_ids: list[int], page_size: int) -> list[int]:
    return [short_hash(each) for each in prefix_hashes(root, token_ids, page_size)]


def hashed_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the number of tokens of each later hashing is added."""
    counts: list[int] = []
    original = PrefixHasher.short_hashes

    def counted(hasher: PrefixHasher, raw: bytes, page_size: int) -> list[int]:
        counts.append(len(raw) // 4)
        return original(hasher, raw, page_size)

    monkeypatch.setattr(PrefixHasher, "short_hashes", counted)
    return counts


@given(
    num_tokens=st.integers(0, 400),
    page_size=st.integers(1, 7),
    stops=st.lists(st.integers(0, 400), max_size=4),
    max_bytes=st.sampled_from([0, 1000, 1 << 20]),
)
def test_hashes_are_the_same_however_they_are_read(
    num_tokens: int, page_size: int, stops: list[int], max_bytes: int
) -> None:
    token_ids = tokens(num_tokens)
    expected = expected_hashes(ROOT, token_ids, page_size)
    memo = PrefixMemo(max_bytes)
    for _ in range(2):  # the second prompt finds what the first one left
        lazy = PrefixPages(ROOT, token_ids, page_size, memo)
        assert len(lazy) == len(expected)
        for stop in stops:  # each reader stops somewhere; the next one begins anew
            assert list(islice(chain.from_iterable(lazy.runs(len(lazy))), stop)) == expected[:stop]
            assert list(chain.from_iterable(lazy.runs(stop))) == expected[:stop]
        assert list(lazy.after(3)) == expected[3:]
        assert lazy.after(3)[1:3] == expected[4:6]
        assert len(lazy.after(3)) == len(expected[3:])
        assert lazy.whole() == expected
        assert list(chain.from_iterable(lazy.runs(len(lazy)))) == expected
        memo.check()


@given(
    prompts=st.lists(
        st.tuples(st.sampled_from([b"a" * 16, b"b" * 16]), st.lists(st.sampled_from([0, 1]), max_size=6)), max_size=20
    ),
    max_bytes=st.sampled_from([0, 4000, 1 << 20]),
)
def test_prompts_that_share_groups_have_their_own_hashes(
    prompts: list[tuple[bytes, list[int]]], max_bytes: int
) -> None:
    memo = PrefixMemo(max_bytes)
    for root, groups in prompts:
        token_ids = [number + group for group in groups for number in range(GROUP_PAGES * 2)] + [5]
        lazy = PrefixPages(root, token_ids, 2, memo)
        assert list(chain.from_iterable(lazy.runs(len(lazy)))) == expected_hashes(root, token_ids, 2)
        memo.check()


def test_two_readers_of_the_same_pages_do_not_disturb_each_other() -> None:
    token_ids = list(range(100))
    lazy = PrefixPages(ROOT, token_ids, 1, PrefixMemo(1 << 20))
    one, other = (chain.from_iterable(lazy.runs(len(lazy))) for _ in range(2))
    assert [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]] == []
    assert lazy.whole() == expected_hashes(ROOT, token_ids, 1)


def test_page_that_nobody_reads_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hashed_tokens(monkeypatch)
    lazy = PrefixPages(ROOT, tokens(16 * 1000), 16, NO_MEMO)
    rest = lazy.after(0)
    assert len(rest) == 1000
    assert not hashed
    next(lazy.runs(1000))
    assert sum(hashed) < 16 * 100


def test_group_that_was_found_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memo = PrefixMemo(1 << 20)
    shared = tokens(3 * GROUP_PAGES * 4)
    read(PrefixPages(ROOT, shared + tokens(1000, 5000), 4, memo), 3 * GROUP_PAGES)
    assert len(memo) == 3
    hashed = hashed_tokens(monkeypatch)
    next_turn = shared + tokens(1000, 9000)
    found = read(PrefixPages(ROOT, next_turn, 4, memo), 3 * GROUP_PAGES)
    assert found == expected_hashes(ROOT, shared, 4)
    assert sum(hashed) <= GROUP_PAGES * 4, "only what is new, to see that nobody holds it"


def test_prompt_that_nobody_holds_is_not_remembered() -> None:
    memo = PrefixMemo(1 << 20)
    lazy = PrefixPages(ROOT, tokens(1000), 4, memo)
    read(lazy, GROUP_PAGES - 1)
    lazy.whole()
    assert len(memo) == 0


def test_group_is_remembered_under_its_own_parent_only() -> None:
    memo = PrefixMemo(1 << 20)
    token_ids = tokens(2 * GROUP_PAGES * 4)
    read(PrefixPages(ROOT, token_ids, 4, memo), GROUP_PAGES)
    other = bytes(16)
    assert read(PrefixPages(other, token_ids, 4, memo), 2 * GROUP_PAGES) == expected_hashes(other, token_ids, 4)


def test_memo_forgets_the_group_that_was_not_used_for_longest() -> None:
    groups = {bytes([number]): Group(array("Q", [number]), PrefixHasher(ROOT)) for number in range(4)}
    memo = PrefixMemo(3 * 950)  # three of them
    for key in [b"\0", b"\1", b"\2"]:
        memo.remember(key, groups[key])
    assert memo.find(b"\0") == groups[b"\0"]
    memo.remember(b"\3", groups[b"\3"])
    assert [memo.find(key) is not None for key in groups] == [True, False, True, True]
    memo.check()


def test_memo_without_room_remembers_nothing() -> None:
    NO_MEMO.remember(b"key", Group(array("Q", [1]), PrefixHasher(ROOT)))
    assert NO_MEMO.find(b"key") is None
    NO_MEMO.check()
