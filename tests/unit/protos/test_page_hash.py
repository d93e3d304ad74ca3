"""Golden vectors: another implementation of the contract must give these bytes."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st
from octavo.page_hash import (
    chain,
    chain_of_bytes,
    page_hash,
    root_hash,
    salted_root,
    short_hash,
    short_hashes,
    token_bytes,
)

ROOT = root_hash(model_revision="0123456789abcdef", tokenizer_revision="fedcba9876543210", page_size=4)


def test_root_has_its_golden_value() -> None:
    assert ROOT.hex() == "afe8288e17b5d9ed816795ee0a43831b"


def test_chain_has_its_golden_values_and_leaves_the_partial_page_out() -> None:
    assert [each.hex() for each in chain(ROOT, [1, 2, 3, 4, 5, 6, 7, 8, 9], 4)] == [
        "f4207710ec73bf1e902b645866a8d631",
        "76814fcdd1d9e071363e056e0caa0409",
    ]
    assert chain_of_bytes(ROOT, token_bytes(range(1, 10)), 4) == chain(ROOT, range(1, 10), 4)
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
