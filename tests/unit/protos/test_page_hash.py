"""Golden vectors: another implementation of the contract must give these bytes."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo.page_hash import ShortChain, chain, page_hash, root_hash, salted_root, short_hash, short_hashes

ROOT = root_hash(model_revision="0123456789abcdef", tokenizer_revision="fedcba9876543210", page_size=4)


def test_root_has_its_golden_value() -> None:
    assert ROOT.hex() == "afe8288e17b5d9ed816795ee0a43831b"


def test_chain_has_its_golden_values_and_leaves_the_partial_page_out() -> None:
    assert [each.hex() for each in chain(ROOT, [1, 2, 3, 4, 5, 6, 7, 8, 9], 4)] == [
        "f4207710ec73bf1e902b645866a8d631",
        "76814fcdd1d9e071363e056e0caa0409",
    ]
    assert chain(ROOT, [0, 2**32 - 1, 128_255, 49_151], 4)[0].hex() == "97f640e8a4c9d4ebd0e177094395ec48"


def test_salt_and_short_form_have_their_golden_values() -> None:
    assert salted_root(ROOT, b"tenant").hex() == "1d35bf89916f303cee157419f73a1879"
    assert salted_root(ROOT, b"") == ROOT
    assert short_hash(chain(ROOT, [1, 2, 3, 4], 4)[0]) == 2215616999415292148


def test_page_is_hashed_as_the_contract_says() -> None:
    raw = struct.pack("<4I", 7, 8, 9, 10)
    assert page_hash(ROOT, [7, 8, 9, 10]) == hashlib.sha256(ROOT + raw).digest()[:16]


def test_every_part_of_the_root_counts() -> None:
    def root(model: str = "m", tokenizer: str = "t", size: int = 16, adapter: str = "") -> bytes:
        return root_hash(model_revision=model, tokenizer_revision=tokenizer, page_size=size, adapter=adapter)

    others = [root(model="x"), root(tokenizer="x"), root(size=32), root(adapter="x"), root(model="mt", tokenizer="")]
    assert len({root(), *others}) == 1 + len(others)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 8))
def test_chain_is_page_hash_repeated(token_ids: list[int], page_size: int) -> None:
    expected, parent = [], ROOT
    for first in range(0, len(token_ids) - page_size + 1, page_size):
        parent = page_hash(parent, token_ids[first : first + page_size])
        expected.append(parent)
    assert chain(ROOT, token_ids, page_size) == expected


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_short_hashes_are_short_hash_of_each(hashes: list[bytes]) -> None:
    assert short_hashes(hashes) == [short_hash(each) for each in hashes]


@given(st.integers(0, 700), st.lists(st.integers(0, 180), max_size=6), st.integers(1, 5))
def test_lazy_chain_gives_the_short_hashes_however_it_is_read(
    num_tokens: int, stops: list[int], page_size: int
) -> None:
    token_ids = [7 * number % 1000 for number in range(num_tokens)]
    expected = short_hashes(chain(ROOT, token_ids, page_size))
    lazy = ShortChain(ROOT, token_ids, page_size)
    assert len(lazy) == len(expected)
    for stop in stops:  # each reader stops somewhere; the next one begins anew
        assert [page for page, _ in zip(lazy, range(stop), strict=False)] == expected[:stop]
    assert list(lazy.after(3)) == expected[3:]
    assert lazy.after(3)[1:3] == expected[4:6]
    assert len(lazy.after(3)) == len(expected[3:])
    assert lazy.whole() == expected
    assert list(lazy) == expected


def test_two_readers_of_a_lazy_chain_do_not_disturb_each_other() -> None:
    token_ids = list(range(100))
    lazy = ShortChain(ROOT, token_ids, 1)
    assert [pair for pair in zip(lazy, lazy, strict=True) if pair[0] != pair[1]] == []
    assert list(lazy) == short_hashes(chain(ROOT, token_ids, 1))


def test_page_that_nobody_reads_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr("octavo.page_hash.chain", lambda root, ids, size: hashed.extend(ids) or chain(root, ids, size))
    lazy = ShortChain(ROOT, list(range(16 * 1000)), 16)
    rest = lazy.after(0)
    assert len(rest) == 1000
    assert not hashed
    next(iter(lazy))
    assert len(hashed) < 16 * 100
