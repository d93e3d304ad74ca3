from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from octavo_router.journal import Acceptance, Ending, Journal, Limits
from octavo_router.output import ChoiceOutput

LIMITS = Limits(max_tokens=4, min_tokens=0, stop_token_ids=frozenset({2}))


def journal_with(*token_ids, limits=LIMITS):
    journal = Journal([1], num_choices=1, limits=limits)
    for position, token_id in enumerate(token_ids):
        assert journal.accept(0, position, token_id, 0.0) is Acceptance.ACCEPTED
    return journal


class Letters:
    """A detokenizer whose token ids are characters."""

    def feed(self, token_ids):
        return "".join(map(chr, token_ids))

    def flush(self):
        return ""


def codes(text):
    return [ord(letter) for letter in text]


def output_of(journal, stops=()):
    return ChoiceOutput(journal.choices[0], Letters(), stops)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_positions_enter_exactly_once_and_in_order(positions):
    journal = Journal([1], num_choices=1, limits=Limits(max_tokens=100, min_tokens=0, stop_token_ids=frozenset()))
    for position in positions:
        accepted = len(journal.choices[0].token_ids)
        outcome = journal.accept(0, position, 10 + position, 0.0)
        wanted = {True: Acceptance.DUPLICATE, False: Acceptance.GAP}[position < accepted]
        assert outcome is (Acceptance.ACCEPTED if position == accepted else wanted)
    token_ids = list(journal.choices[0].token_ids)
    assert token_ids == list(range(10, 10 + len(token_ids)))


def test_token_beyond_the_limit_or_the_choices_is_not_taken():
    journal = journal_with(5, 5, 5, 5)
    assert journal.accept(0, 4, 5, 0.0) is Acceptance.GAP
    assert journal.accept(1, 0, 5, 0.0) is Acceptance.GAP


def test_token_after_the_end_is_dropped():
    journal = journal_with(5)
    journal.choices[0].end(Ending.STOP)
    assert journal.accept(0, 1, 5, 0.0) is Acceptance.DUPLICATE


def test_first_end_counts():
    journal = journal_with(5)
    journal.choices[0].end(Ending.DEADLINE)
    journal.choices[0].end(Ending.STOP)
    assert journal.choices[0].ending is Ending.DEADLINE


def test_settle_ends_what_its_last_token_ended():
    stopped, full, open_ = journal_with(5, 2), journal_with(5, 5, 5, 5), journal_with(5)
    for journal in (stopped, full, open_):
        journal.settle()
    assert (stopped.choices[0].ending, stopped.choices[0].stop_token_id) == (Ending.STOP, 2)
    assert full.choices[0].ending is Ending.LENGTH
    assert open_.choices[0].ending is None


def test_settle_heeds_min_tokens():
    limits = Limits(max_tokens=4, min_tokens=2, stop_token_ids=frozenset({2}))
    early = journal_with(5, 2, limits=limits)
    early.settle()
    assert early.choices[0].ending is None


def test_output_gives_what_came_since_the_last_time():
    journal = Journal([1], num_choices=1, limits=Limits(max_tokens=9, min_tokens=0, stop_token_ids=frozenset()))
    output = output_of(journal)
    assert output.take() == (None, None)
    for position, token_id in enumerate(codes("ab")):
        journal.accept(0, position, token_id, -1.0)
    chunk, ended = output.take()
    assert (chunk.text, chunk.position, list(chunk.token_ids), list(chunk.logprobs)) == ("ab", 0, codes("ab"), [-1, -1])
    assert ended is None
    journal.accept(0, 2, ord("c"), -1.0)
    journal.choices[0].end(Ending.STOP, stop_token_id=ord("c"))
    chunk, ended = output.take()
    assert (chunk.text, chunk.position) == ("c", 2)
    assert (ended.ending, ended.stopped_by) == (Ending.STOP, str(ord("c")))
    assert output.take() == (None, None)


def test_stop_string_takes_later_tokens_out_of_the_journal():
    journal = Journal([1], num_choices=1, limits=Limits(max_tokens=9, min_tokens=0, stop_token_ids=frozenset()))
    for position, token_id in enumerate(codes("abcdef")):
        journal.accept(0, position, token_id, 0.0)
    journal.choices[0].end(Ending.LENGTH)
    chunk, ended = output_of(journal, ["cd"]).take()
    assert (chunk.text, len(chunk.token_ids)) == ("ab", 4)
    assert (ended.ending, ended.stopped_by) == (Ending.STOP, "cd")
    assert journal.num_output_tokens == 4


def test_held_back_text_leaves_with_the_end():
    journal = Journal([1], num_choices=1, limits=Limits(max_tokens=9, min_tokens=0, stop_token_ids=frozenset()))
    output = output_of(journal, ["cd"])
    for position, token_id in enumerate(codes("abc")):
        journal.accept(0, position, token_id, 0.0)
    assert output.take()[0].text == "ab"
    journal.choices[0].end(Ending.LENGTH)
    chunk, ended = output.take()
    assert (chunk.text, chunk.position, len(chunk.token_ids)) == ("c", 3, 0)
    assert ended.ending is Ending.LENGTH


def started_journal():
    return Journal([1] * 20, num_choices=1, limits=LIMITS)


def test_cached_tokens_are_those_of_the_last_start_before_any_output():
    journal = started_journal()
    journal.start(16)
    journal.start(4)
    journal.accept(0, 0, 5, 0.0)
    journal.start(20)
    assert journal.cached_tokens == 4


def test_cached_tokens_are_never_more_than_the_prompt():
    journal = started_journal()
    journal.start(48)
    assert journal.cached_tokens == 20
