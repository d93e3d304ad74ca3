"""Tallies of what sequences hold: recounted from their tokens, or kept on the device where tokens are sampled."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest
import torch
from octavo.page_hash import token_bytes
from octavo_engine.messages import Submit
from octavo_engine.offline import Output
from octavo_engine.penalties import SlotPenalties, count_anew, write_tally
from octavo_engine.pipelined_runner import PipelinedRunner
from octavo_engine.sequence import Request, Row, Sampling, Sequence
from support.bigram_engine import VOCAB, offline
from support.core_submit import submit

PENALIZED = Sampling(frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=1.5)


def sequence(prompt: list[int], output: list[int], sampling: Sampling = PENALIZED) -> Sequence:
    return Sequence(request=Request(key=1, prompt=prompt, sampling=sampling), tokens=prompt + output)


def row(slot: int, of: Sequence, *, samples: bool = True) -> Row:
    return Row(
        sequence=of, start=0, num_tokens=1, samples=samples, output_position=0, block_table=(0,), slot=slot, generation=1
    )  # fmt: skip


def test_a_tally_tells_prompt_from_output() -> None:
    tally = np.full(VOCAB, 99, dtype=np.int32)
    write_tally(sequence([3, 3, 5], [5, 7, 7]), tally)
    assert tally.tolist() == [0, 0, 0, 1, 0, 3, 0, 4, 0, 0, 0, 0]


def test_a_recount_holds_the_rows_that_sample_and_a_tally_for_those_with_penalties() -> None:
    plain = sequence([1], [2], Sampling())
    rows = [row(0, plain), row(4, sequence([1], [2])), row(5, sequence([1], [2]), samples=False), row(2, plain)]
    penalties = count_anew(rows, VOCAB)
    assert penalties is not None
    assert penalties.tallies[penalties.slots[1], :3].tolist() == [0, 1, 2]
    assert penalties.frequency.tolist() == [0, 0.5, 0]
    assert penalties.presence.tolist() == [0, 0.25, 0]
    assert penalties.repetition.tolist() == [1, 1.5, 1]
    assert len(penalties.tallies) == 1


def test_without_penalties_there_is_nothing_to_recount() -> None:
    assert count_anew([row(0, sequence([1], [], Sampling()))], VOCAB) is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("frequency_penalty", -0.1, True),
        ("presence_penalty", 0.1, True),
        ("repetition_penalty", 0.9, True),
        ("repetition_penalty", 1.0, False),
        ("presence_penalty", -0.0, False),
    ],
)
def test_sampling_knows_whether_it_has_penalties(name: str, value: float, *, expected: bool) -> None:
    assert Sampling(**{name: value}).has_penalties is expected


def test_slots_take_no_memory_for_tallies_before_they_are_needed() -> None:
    slots = SlotPenalties(num_rows=3, vocab_size=VOCAB, device=torch.device("cpu"))
    slots.occupy(0, sequence([1], [], Sampling()))
    assert slots._tallies is None
    slots.occupy(1, sequence([1], [4]))
    assert slots.tallies[1].tolist() == [0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]
    slots.release()
    assert slots._tallies is None
    assert slots.repetition.tolist() == [1, 1, 1]


def test_an_occupant_without_penalties_inherits_none() -> None:
    slots = SlotPenalties(num_rows=3, vocab_size=VOCAB, device=torch.device("cpu"))
    plain = sequence([1], [], Sampling())
    slots.occupy(1, sequence([1], []))
    assert slots.concern([row(0, plain), row(1, sequence([1], []))])
    assert not slots.concern([row(1, sequence([1], []), samples=False)])
    slots.occupy(1, plain)
    assert not slots.concern([row(1, plain)])
    assert (slots.frequency[1], slots.presence[1], slots.repetition[1]) == (0, 0, 1)


# The runner that works ahead against the one that recounts, over a decoder that costs nothing.


def same_tokens(requests: list[Submit], **settings: int) -> dict[tuple[int, int], Output]:
    """Run requests one step ahead, and compare with each recounted, on its own; return the former."""
    captured, uncaptured = offline(ahead=True, **settings), offline(ahead=True, **settings)
    cast("PipelinedRunner", uncaptured._runner).prepared.most_captured_tokens = 0
    outputs = captured.generate(requests)
    again = uncaptured.generate(requests)
    for request in requests:
        recounted = offline(ahead=False).generate([request])
        for at, output in recounted.items():
            assert outputs[at].token_ids == output.token_ids, f"request {at}"
            assert outputs[at].logprobs == output.logprobs, f"request {at}"
            assert (again[at].token_ids, again[at].logprobs) == (output.token_ids, output.logprobs), f"request {at}"
    return outputs


STYLES: list[dict[str, Any]] = [
    {"frequency_penalty": 0.7},
    {},
    {"presence_penalty": 1.5, "temperature": 0.8, "seed": 5},
    {"repetition_penalty": 1.6, "frequency_penalty": -0.2, "temperature": 1.1, "top_k": 5, "seed": 8},
]


def test_tokens_one_step_ahead_are_counted_once_each() -> None:
    outputs = same_tokens([submit(key, [1, 2, 3 + key], 9, **style) for key, style in enumerate(STYLES)])
    assert outputs[0, 0].token_ids != offline(ahead=False).generate([submit(0, [1, 2, 3], 9)])[0, 0].token_ids


def test_preempted_sequences_are_counted_again() -> None:
    outputs = same_tokens([submit(key, [4, 5, 6, key], 13, **STYLES[key]) for key in range(4)], num_pages=9)
    assert sum(output.end.num_preemptions for output in outputs.values() if output.end is not None) > 0


def test_slots_change_hands_and_committed_output_counts() -> None:
    rng = random.Random(1)
    requests = [
        submit(
            key, [rng.randrange(VOCAB) for _ in range(1 + key)], 9, stop_token_ids=[key % 5],
            committed=[token_bytes([7, 7, 8])] if key % 2 else [], **STYLES[(key + 2) % 4],
        )
        for key in range(6)
    ]  # fmt: skip
    same_tokens(requests, max_sequences=2)


def test_choices_count_their_own_output() -> None:
    outputs = same_tokens([submit(0, [1, 2, 3, 4, 5], 8, n=3, **STYLES[3])])
    assert len({tuple(output.token_ids) for output in outputs.values()}) > 1


def test_after_a_failed_step_counts_start_from_the_tokens() -> None:
    """A sequence outside the failed steps goes on in its slot."""
    slots = SlotPenalties(num_rows=2, vocab_size=VOCAB, device=torch.device("cpu"))
    of = sequence([1], [2])
    slots.occupy(0, of)
    slots.tallies[0] += 2  # a step that failed may have counted, or not
    slots.occupy(0, of)
    assert slots.tallies[0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
