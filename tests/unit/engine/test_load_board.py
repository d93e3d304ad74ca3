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


def test_load_says_which_requests_of_whom_it_counts_as_long_as_their_link_lasts() -> None:
    board = LoadBoard()
    board.linked(1, "router-a")
    board.linked(2, "router-b")
    board.took(1, "router-a", 3)
    board.took(2, "router-b", 9)
    board.took(1, "router-a", 4)
    assert {each.router_id: each.stream_id for each in board.message().taken} == {"router-a": 4, "router-b": 9}
    board.unlinked(1, "router-a")
    assert [each.router_id for each in board.message().taken] == ["router-b"]


def test_a_routers_new_link_takes_over_from_one_that_is_not_yet_known_to_be_dead() -> None:
    board = LoadBoard()
    board.linked(1, "router-a")
    board.took(1, "router-a", 500)
    board.linked(2, "router-a")
    assert not board.message().taken, "stream ids start again"
    board.took(1, "router-a", 501)
    board.took(2, "router-a", 1)
    board.unlinked(1, "router-a")
    assert {each.router_id: each.stream_id for each in board.message().taken} == {"router-a": 1}
    board.unlinked(2, "router-a")
    assert not board.message().taken
