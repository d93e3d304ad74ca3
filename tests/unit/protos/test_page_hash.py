"""Golden vectors: another implementation of the contract must give these bytes."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st
from octavo.page_hash import PrefixHasher, prefix_hashes, root_hash, salted_root, short_hash, token_bytes

ROOT = root_hash(model_revision="0123456789abcdef", tokenizer_revision="fedcba9876543210", page_size=4)


def test_root_has_its_golden_value() -> None:
    assert ROOT.hex() == "c8ac2041ad55a4850b365582fc428d7c"


def test_prefixes_have_their_golden_values_and_leave_the_partial_page_out() -> None:
    assert [each.hex() for each in prefix_hashes(ROOT, [1, 2, 3, 4, 5, 6, 7, 8, 9], 4)] == [
        "983b81577c7a1386064dc0cc9dd16438",
        "de10844a77ad8e80b6bcd0433b1cdf72",
    ]
    assert prefix_hashes(ROOT, [0, 2**32 - 1, 128_255, 49_151], 4)[0].hex() == "18c9e5db2438e9a10ae9c3917eee7821"


def test_salt_and_short_form_have_their_golden_values() -> None:
    assert salted_root(ROOT, b"tenant").hex() == "3a8edeea1809a6e2f2b28e6a10b5314f"
    assert salted_root(ROOT, b"") == ROOT
    assert short_hash(prefix_hashes(ROOT, [1, 2, 3, 4], 4)[0]) == 9661200300102466456


def test_page_is_hashed_with_all_before_it_as_the_contract_says() -> None:
    raw = struct.pack("<8I", *range(7, 15))
    expected = [hashlib.sha256(ROOT + raw[:end]).digest()[:16] for end in (16, 32)]
    assert prefix_hashes(ROOT, range(7, 15), 4) == expected


def test_every_part_of_the_root_counts() -> None:
    def root(model: str = "m", tokenizer: str = "t", size: int = 16, adapter: str = "") -> bytes:
        return root_hash(model_revision=model, tokenizer_revision=tokenizer, page_size=size, adapter=adapter)

    others = [root(model="x"), root(tokenizer="x"), root(size=32), root(adapter="x"), root(model="mt", tokenizer="")]
    assert len({root(), *others}) == 1 + len(others)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 8), st.integers(0, 5))
def test_hasher_goes_on_where_it_stopped_and_so_does_its_copy(
    token_ids: list[int], page_size: int, pages_first: int
) -> None:
    expected = prefix_hashes(ROOT, token_ids, page_size)
    shorts = [short_hash(each) for each in expected]
    first, rest = token_ids[: pages_first * page_size], token_bytes(token_ids[pages_first * page_size :])
    hasher = PrefixHasher(ROOT)
    assert hasher.hashes(token_bytes(first), page_size) == expected[:pages_first]
    copied = hasher.copy()
    assert hasher.hashes(rest, page_size) == expected[pages_first:]
    assert copied.short_hashes(rest, page_size) == shorts[pages_first:]
    assert not expected or hasher.prefix_hash == copied.prefix_hash == expected[-1]
