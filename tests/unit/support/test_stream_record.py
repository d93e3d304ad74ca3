from __future__ import annotations

from dataclasses import replace

import pytest
from octavo.v1 import engine_pb2, inference_pb2, types_pb2
from support.stream_record import End, Event, Failure, Piece, StreamRecord, check_pages, check_stream

LENGTH = types_pb2.FINISH_REASON_LENGTH
STOP = types_pb2.FINISH_REASON_STOP

A = Piece(0, 0, (10, 11), (-0.5, -0.25), "ab")
B = Piece(0, 2, (12,), (-1.0,), "c")
OTHER = Piece(1, 0, (20,), (-2.0,), "x")
OTHER_END = End(1, STOP, "x", 5, 1)
END = End(0, LENGTH, "", 5, 4)
RIGHT: list[Event] = [A, OTHER, OTHER_END, B, END]


def record(*events: Event) -> StreamRecord:
    return StreamRecord("request-7", 2, list(events))


def wrong(*events: Event) -> list[str]:
    return [str(violation) for violation in check_stream(record(*events), record(*RIGHT))]


def test_equal_stream_is_right() -> None:
    assert wrong(*RIGHT) == []


def test_packing_of_tokens_into_messages_does_not_count() -> None:
    pieces = [
        Piece(0, 0, (10,), (-0.5,), ""),
        Piece(0, 1, (11, 12), (-0.25, -1.0), "abc"),
    ]
    assert wrong(pieces[0], OTHER, pieces[1], OTHER_END, END) == []


def test_counts_of_ends_before_the_last_do_not_count() -> None:
    assert wrong(A, OTHER, replace(OTHER_END, output_tokens=3), B, END) == []


WRONG = {
    "a token comes again": ([A, OTHER, OTHER_END, replace(A, text=""), B, END], "choice 0 position 0: comes again"),
    "a token is missing": (
        [replace(A, token_ids=(10,), logprobs=(-0.5,)), OTHER, OTHER_END, B, END],
        "choice 0 position 1: is missing, up to 1",
    ),
    "pieces changed places": ([B, A, OTHER, OTHER_END, END], "choice 0 position 0: is missing, up to 1"),
    "a token differs": (
        [replace(A, token_ids=(10, 99)), OTHER, OTHER_END, B, END],
        "choice 0 position 1: token 99 instead of 11",
    ),
    "a token of the other choice": (
        [A, replace(OTHER, token_ids=(10,)), OTHER_END, B, END],
        "choice 1 position 0: token 10 instead of 20",
    ),
    "a log-probability differs": (
        [replace(A, logprobs=(-0.5, -0.2500001)), OTHER, OTHER_END, B, END],
        "choice 0 position 1: log-probability -0.2500001 instead of -0.25",
    ),
    "log-probabilities are missing": (
        [replace(A, logprobs=()), OTHER, OTHER_END, B, END],
        "choice 0 position 0: 2 tokens with 0 log-probabilities",
    ),
    "the text differs": (
        [replace(A, text="aX"), OTHER, OTHER_END, B, END],
        "choice 0: text 'aXc' instead of 'abc'",
    ),
    "a tail is missing": ([A, OTHER, OTHER_END, END], "choice 0: 2 tokens instead of 3"),
    "a token too many": (
        [A, OTHER, OTHER_END, B, Piece(0, 3, (13,), (-1.0,), ""), END],
        "choice 0 position 3: token 13 beyond the end at 3",
    ),
    "a choice does not end": ([A, OTHER, OTHER_END, B], "choice 0: ended 0 times"),
    "a choice ends twice": ([A, OTHER, OTHER_END, B, END, END], "choice 0: ended 2 times"),
    "a choice goes on after its end": ([A, OTHER, OTHER_END, END, B], "choice 0 position 2: goes on after its end"),
    "a finish reason differs": (
        [A, OTHER, OTHER_END, B, replace(END, reason=STOP)],
        "choice 0: ended by FINISH_REASON_STOP '' instead of FINISH_REASON_LENGTH ''",
    ),
    "a stop string differs": (
        [A, OTHER, replace(OTHER_END, stopped_by="y"), B, END],
        "choice 1: ended by FINISH_REASON_STOP 'y' instead of FINISH_REASON_STOP 'x'",
    ),
    "output is counted twice": (
        [A, OTHER, OTHER_END, B, replace(END, output_tokens=6)],
        "usage (prompt, output) (5, 6) instead of (5, 4)",
    ),
    "output is counted as prompt": (
        [A, OTHER, OTHER_END, B, replace(END, prompt_tokens=7)],
        "usage (prompt, output) (7, 4) instead of (5, 4)",
    ),
    "a choice that nobody asked for": ([*RIGHT, replace(OTHER, choice=2)], "choice 2: nobody asked for this choice"),
    "the stream fails": ([A, Failure("UNAVAILABLE", "no_engine")], "failed with UNAVAILABLE (no_engine)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_stream_is_told_with_request_choice_and_position(case: str) -> None:
    events, complaint = WRONG[case]
    assert any(violation.startswith("request-7") and violation.endswith(complaint) for violation in wrong(*events))


def test_what_came_before_a_failure_is_checked_too() -> None:
    assert len(wrong(A, Failure("UNAVAILABLE", "no_engine"))) == 1
    assert len(wrong(replace(A, token_ids=(10, 99)), Failure("UNAVAILABLE", "no_engine"))) == 2


def test_record_keeps_what_a_stream_brings() -> None:
    chunk = inference_pb2.OutputChunk(index=1, text="x", position=3, token_ids=[7, 8], logprobs=[-0.5, -1.0])
    usage = types_pb2.Usage(prompt_tokens=5, output_tokens=2)
    end = inference_pb2.Finished(index=1, reason=STOP, stopped_by="x", usage=usage, num_moves=2)
    kept = record()
    kept.add(inference_pb2.GenerateResponse(accepted=inference_pb2.Accepted(engine_id="engine-1")))
    kept.add(inference_pb2.GenerateResponse(chunk=chunk))
    kept.add(inference_pb2.GenerateResponse(finished=end))
    assert kept.events == [Piece(1, 3, (7, 8), (-0.5, -1.0), "x"), End(1, STOP, "x", 5, 2)]
    assert (kept.engine_id, kept.num_tokens, kept.num_moves) == ("engine-1", 2, 2)


@pytest.mark.parametrize(
    ("load", "complaints"),
    [
        ({"pages_free": 6, "pages_cached": 4}, []),
        ({"pages_free": 6, "pages_cached": 3}, ["6 free + 3 cached + 0 in use = 9 pages of 10"]),
        ({"pages_free": 6, "pages_cached": 3, "pages_in_use": 1}, ["1 pages, 0 running and 0 waiting"]),
        ({"pages_free": 10, "num_waiting": 1}, ["0 pages, 0 running and 1 waiting"]),
    ],
)
def test_pages_of_an_idle_engine_are_accounted_for(load: dict[str, int], complaints: list[str]) -> None:
    found = [str(each) for each in check_pages("engine-1", engine_pb2.Load(**load), num_pages=10)]
    assert len(found) == len(complaints)
    assert all(each.startswith(f"engine-1: {complaint}") for each, complaint in zip(found, complaints, strict=True))
