from __future__ import annotations

from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from octavo.errors import InvalidRequest
from octavo.v1 import inference_pb2, types_pb2
from octavo_router.detokenizer import Vocabulary
from octavo_router.journal import Ending, Journal, Limits
from octavo_router.output import ChoiceOutput
from octavo_router.resume import ResumedChoice, Resumption
from octavo_router.validation import check_resume
from support.tiny_tokenizer import tiny_tokenizer

EOS = 2
TOKENIZER = tiny_tokenizer()
PLAIN = Vocabulary(TOKENIZER, byte_level=True)
WINDOW = Vocabulary(TOKENIZER, byte_level=False)


def ids_of(text: str) -> list[int]:
    """Return one token per byte, so that characters are cut everywhere."""
    bytes_of = {PLAIN.bytes_of[token_id]: token_id for token_id in range(TOKENIZER.get_vocab_size())}
    return [bytes_of[bytes([byte])] for byte in text.encode()]


class Generation:
    """A choice at one router, and what its client has: the engine's tokens are given, their chunks are not."""

    def __init__(self, vocabulary, stops, limits, received=None):
        self.journal = Journal([1] * 5, num_choices=1, limits=limits)
        self.output = ChoiceOutput(self.journal.choices[0], vocabulary.detokenizer(), stops)
        self.text, self.token_ids, self.end = "", [], None
        if received is not None:
            self.text, self.token_ids = received.text, list(received.token_ids)
            choice = ResumedChoice(token_ids=self.token_ids, text_bytes=len(self.text.encode()), ending=None)
            Resumption(engine_kind="k", cached_tokens=3, choices=[choice]).restore(self.journal, [self.output])

    def deliver(self):
        chunk, self.end = self.output.take()
        if chunk is not None:
            assert chunk.position == len(self.token_ids)
            self.text += chunk.text
            self.token_ids += chunk.token_ids

    def run(self, token_ids, sizes, ending, num_chunks=None):
        """Take the tokens in steps of the given sizes to the end, or until the client has so many messages."""
        sizes, messages = cycle(sizes), 0
        choice = self.journal.choices[0]
        while self.end is None and messages != num_chunks:
            for _ in range(next(sizes)):
                position = len(choice.token_ids)
                if position < len(token_ids):
                    self.journal.accept(0, position, token_ids[position], -1.0)
            if len(choice.token_ids) == len(token_ids):
                choice.end(*ending[:1], **ending[1])
            self.deliver()
            messages += 1
        return self


TEXTS = st.lists(st.sampled_from(["a", "é", "€", "👋", "\u0301", "STOP", "ST", "OP!", "\n"]), max_size=8).map("".join)
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(
    text=TEXTS,
    cut_bytes=st.integers(0, 3),
    stops=st.lists(st.sampled_from(["STOP", "OP!", "€", "\n", "a👋", "\ufffd"]), max_size=2),
    sizes=SIZES,
    later_sizes=SIZES,
    vocabulary=st.sampled_from([PLAIN, WINDOW]),
    with_eos=st.booleans(),
    lost_end=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_output_cut_anywhere_goes_on_as_if_it_had_not_been_cut(
    text, cut_bytes, stops, sizes, later_sizes, vocabulary, with_eos, lost_end
):
    token_ids = ids_of(text)[: -cut_bytes or None] or ids_of("x")  # may end within a character
    if with_eos:
        token_ids.append(EOS)
    limits = Limits(max_tokens=len(token_ids), min_tokens=0, stop_token_ids=frozenset({EOS}))
    ending = (Ending.STOP, {"stop_token_id": EOS}) if with_eos else (Ending.LENGTH, {})
    undisturbed = Generation(vocabulary, stops, limits).run(token_ids, [3], ending)
    for num_chunks in range(1, len(token_ids) + 2):
        first = Generation(vocabulary, stops, limits).run(token_ids, sizes, ending, num_chunks)
        if first.end is not None and not lost_end:
            break
        second = Generation(vocabulary, stops, limits, received=first)
        second.run(token_ids, later_sizes, ending)
        assert (second.text, second.token_ids, second.end) == (
            undisturbed.text,
            undisturbed.token_ids,
            undisturbed.end,
        )
        assert second.journal.num_output_tokens == undisturbed.journal.num_output_tokens
        if first.end is not None:
            break


LIMITS = Limits(max_tokens=99, min_tokens=0, stop_token_ids=frozenset({EOS}))


@pytest.mark.parametrize(
    ("text", "text_bytes", "stops"),
    [("aé", 2, []), ("ab", 3, []), ("abSTOPc", 2, ["STOP"]), ("abST", 4, ["STOP"])],
    ids=["within a character", "more than the tokens mean", "behind a stop string", "held back"],
)
def test_text_that_the_tokens_do_not_mean_is_refused(text, text_bytes, stops):
    journal = Journal([1], num_choices=1, limits=LIMITS)
    output = ChoiceOutput(journal.choices[0], PLAIN.detokenizer(), stops)
    choice = ResumedChoice(token_ids=ids_of(text), text_bytes=text_bytes, ending=None)
    with pytest.raises(InvalidRequest) as caught:
        Resumption(engine_kind="k", cached_tokens=0, choices=[choice]).restore(journal, [output])
    assert (caught.value.reason, caught.value.field) == ("resume_mismatch", "resume.choices[0].text_bytes")


def test_finished_choice_is_not_said_again_but_counts():
    journal = Journal([1] * 5, num_choices=2, limits=LIMITS)
    outputs = [ChoiceOutput(choice, PLAIN.detokenizer(), []) for choice in journal.choices]
    choices = [
        ResumedChoice(token_ids=ids_of("abc"), text_bytes=3, ending=Ending.STOP),
        ResumedChoice(token_ids=ids_of("x"), text_bytes=1, ending=None),
    ]
    Resumption(engine_kind="k", cached_tokens=9, choices=choices).restore(journal, outputs)
    assert (outputs[0].is_over, outputs[1].is_over) == (True, False)
    assert (journal.num_output_tokens, journal.cached_tokens) == (4, 5)


def resume(*choices, kind="k"):
    return inference_pb2.Resume(engine_kind=kind, choices=choices)


def resumed(*token_ids, **more):
    return inference_pb2.ResumedChoice(token_ids=token_ids, **more)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (resume(resumed(5)), "resume.choices"),
        (resume(resumed(5), resumed(99)), "resume.choices[1].token_ids"),
        (resume(resumed(5), resumed(1, 2, 3, 4)), "resume.choices[1].token_ids"),
        (resume(resumed(5), resumed(text_bytes=1)), "resume.choices[1].text_bytes"),
        (resume(resumed(5, finish_reason=types_pb2.FINISH_REASON_ERROR), resumed()), "resume.choices[0].finish_reason"),
        (resume(*[resumed(5, finish_reason=types_pb2.FINISH_REASON_STOP)] * 2), "resume"),
        (resume(resumed(5), resumed(), kind=""), "resume.engine_kind"),
        (resume(resumed(5), resumed(), kind="k" * 200), "resume.engine_kind"),
    ],
)
def test_impossible_output_is_refused_with_its_field(message, field):
    with pytest.raises(InvalidRequest) as caught:
        check_resume(message, types_pb2.SamplingParams(n=2, seed=0, max_tokens=3), vocab_size=99)
    assert caught.value.field == field


def test_output_without_its_seed_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        check_resume(resume(resumed(5)), types_pb2.SamplingParams(), vocab_size=99)
    assert caught.value.field == "sampling.seed"


def test_resume_without_any_output_needs_neither_seed_nor_kind():
    check_resume(resume(resumed(), kind=""), types_pb2.SamplingParams(), vocab_size=99)
