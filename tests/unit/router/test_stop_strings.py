from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from octavo_router.stop_strings import StopStrings

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)


def run(stops, pieces):
    matcher = StopStrings(stops)
    text = ""
    for piece in pieces:
        matched = matcher.feed(piece)
        text += matched.text
        if matched.stop is not None:
            return text, matched.stop
    return text + matcher.flush(), None


def by_hand(stops, text):
    """Read the text letter by letter: the first stop string to be complete ends it, the longest if several are."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_outcome_is_that_of_reading_letter_by_letter(stops, pieces):
    text, stop = run(stops, pieces)
    wanted_text, wanted_stop = by_hand(stops, "".join(pieces))
    assert (text, stop) == (wanted_text, wanted_stop)


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_nothing_leaves_that_might_begin_a_stop_string(stops, pieces):
    matcher = StopStrings(stops)
    seen = left = ""
    for piece in pieces:
        seen += piece
        matched = matcher.feed(piece)
        left += matched.text
        if matched.stop is not None:
            return
        held = seen[len(left) :]
        starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
        longest = max((start for start in starts if seen.endswith(start)), key=len, default="")
        assert held == longest


@pytest.mark.parametrize(
    ("pieces", "text", "stop"),
    [
        (["one EN", "D two"], "one ", "END"),
        (["one EN", "ough"], "one ENough", None),
        (["EN"], "EN", None),
        (["x", "E", "E", "N", "D"], "xE", "END"),
    ],
)
def test_stop_string_over_pieces(pieces, text, stop):
    assert run(["END"], pieces) == (text, stop)


def test_without_stop_strings_text_passes_through():
    assert run([], ["a", "b"]) == ("ab", None)
