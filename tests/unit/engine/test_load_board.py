from __future__ import annotations

from octavo_engine.load import LoadBoard


def test_pages_of_an_engine_that_has_only_just_begun_are_all_free() -> None:
    board = LoadBoard()
    board.open(192)
    load = board.message()
    assert (load.pages_free, load.pages_cached, load.pages_in_use) == (192, 0, 0)


def test_load_says_whether_the_core_hangs() -> None:
    board = LoadBoard()
    assert not board.message().stalled
    board.stalled = True
    assert board.message().stalled
