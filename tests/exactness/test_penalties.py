"""Penalties count what a sequence holds, and that never depends on how it was batched, chunked, preempted or moved.

On a GPU tokens are counted where they are sampled, a step before the host knows them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from octavo.page_hash import token_bytes
from octavo_engine import messages
from octavo_engine.offline import OfflineEngine, Output
from support.core_submit import submit
from support.gpu import NEEDS_GPU
from support.tiny_models import VOCAB, alone, engine, write_model

GREEDY: dict[str, Any] = {"temperature": 0.0, "frequency_penalty": 1.8, "presence_penalty": 1.0}
SEEDED: dict[str, Any] = {
    "temperature": 0.9, "top_p": 0.95, "seed": 41, "frequency_penalty": 1.5, "presence_penalty": -0.5, "repetition_penalty": 1.8,
}  # fmt: skip
PLAIN: dict[str, Any] = {"temperature": 0.8, "top_k": 30, "seed": 6}
NUM_TOKENS = 18
_RNG = random.Random(15)
PROMPT = [_RNG.randrange(3, VOCAB) for _ in range(45)]
OTHERS = [[_RNG.randrange(3, VOCAB) for _ in range(length)] for length in (3, 31, 64, 9)]

Build = Callable[..., OfflineEngine]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    directory: Path = tmp_path_factory.mktemp("qwen3")
    write_model(directory, "qwen3")
    machine = {"device": "cuda", "dtype": "bfloat16"} if request.param == "cuda" else {}

    def built(**settings: Any) -> OfflineEngine:
        return engine(directory, **({"numerics": "exact"} | machine | settings))

    return built


@pytest.fixture(scope="module")
def octavo(build: Build) -> OfflineEngine:
    return build()


def mixed_crowd() -> list[messages.Submit]:
    """Return requests of all styles: rows with penalties beside rows without."""
    prompts, styles = [PROMPT, *OTHERS], [GREEDY, SEEDED, PLAIN, SEEDED, PLAIN]
    return [
        submit(key, prompt, NUM_TOKENS - key, **style)
        for key, (prompt, style) in enumerate(zip(prompts, styles, strict=True))
    ]


def each_alone(octavo: OfflineEngine, requests: list[messages.Submit]) -> dict[int, Output]:
    return {request.key: alone(octavo, request) for request in requests}


def bits(output: Output) -> tuple[list[int], list[float]]:
    return output.token_ids, output.logprobs


def test_penalties_change_what_is_said(octavo: OfflineEngine) -> None:
    """Guards the tests below: outputs with and without penalties must differ."""
    without = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    for style in (GREEDY, SEEDED):
        plain = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **(style | without)))
        assert alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style)).token_ids != plain.token_ids


def test_a_high_frequency_penalty_never_lets_a_token_come_often(octavo: OfflineEngine) -> None:
    repetitive = submit(0, PROMPT, 60, temperature=0.5, seed=3, frequency_penalty=-2.0)
    varied = submit(1, PROMPT, 60, temperature=0.5, seed=3, frequency_penalty=2.0)
    most = [
        max(output.token_ids.count(token_id) for token_id in output.token_ids)
        for output in (alone(octavo, repetitive), alone(octavo, varied))
    ]
    assert most[0] > 30
    assert most[1] < 6


@pytest.mark.parametrize("style", [{"temperature": 0.0}, PLAIN], ids=["greedy", "seeded"])
def test_penalties_too_small_to_change_a_logit_change_no_bit(octavo: OfflineEngine, style: dict[str, Any]) -> None:
    expected = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style))
    tiny = {"frequency_penalty": 1e-30, "presence_penalty": -1e-30}
    assert bits(alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style, **tiny))) == bits(expected)


@pytest.fixture(scope="module")
def crowd_alone(octavo: OfflineEngine) -> dict[int, Output]:
    return each_alone(octavo, mixed_crowd())


def test_batched_with_and_without_penalties_equals_alone(octavo: OfflineEngine, crowd_alone: dict[int, Output]) -> None:
    octavo.scheduler.flush()
    octavo.scheduler.drain()
    outputs = octavo.generate(mixed_crowd())
    for key, output in crowd_alone.items():
        assert bits(outputs[key, 0]) == bits(output), f"request {key}"


def test_preempted_equals_undisturbed(build: Build, crowd_alone: dict[int, Output]) -> None:
    outputs = build(num_pages=13, watermark=0.0).generate(mixed_crowd())
    ends = [output.end for output in outputs.values()]
    assert sum(end.num_preemptions for end in ends if end is not None) > 0, "nothing was preempted: the test is void"
    for key, output in crowd_alone.items():
        assert bits(outputs[key, 0]) == bits(output), f"request {key}"


@pytest.mark.parametrize("chunk", [1, 7])
def test_every_chunk_size_gives_the_same(octavo: OfflineEngine, build: Build, chunk: int) -> None:
    chunked = build(max_step_tokens=chunk)
    for style in (GREEDY, SEEDED):
        request = submit(0, PROMPT, NUM_TOKENS, **style)
        assert bits(alone(chunked, request)) == bits(alone(octavo, request))


def test_prefix_hit_equals_miss(octavo: OfflineEngine) -> None:
    expected = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **SEEDED))
    hit = octavo.generate([submit(1, PROMPT, NUM_TOKENS, **SEEDED)])[1, 0]
    assert hit.end is not None
    assert hit.end.cached_tokens == 32
    assert bits(hit) == bits(expected)


def test_each_choice_of_a_fork_counts_its_own_output(octavo: OfflineEngine) -> None:
    octavo.scheduler.flush()
    forked = octavo.generate([submit(0, PROMPT, NUM_TOKENS, n=3, **SEEDED)])
    for choice in range(3):
        own = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **(SEEDED | {"seed": SEEDED["seed"] + choice})))
        assert bits(forked[0, choice]) == bits(own), f"choice {choice}"


@pytest.mark.parametrize("style", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_committed_output_counts_as_output_and_not_as_prompt(octavo: OfflineEngine, style: dict[str, Any]) -> None:
    whole = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style))
    for done in (1, 4, NUM_TOKENS - 1):
        committed = [token_bytes(whole.token_ids[:done])]
        resumed = alone(octavo, submit(0, PROMPT, NUM_TOKENS, committed=committed, **style))
        assert bits(resumed) == (whole.token_ids[done:], whole.logprobs[done:]), f"moved after {done} tokens"


def test_slots_change_hands_with_their_counts(octavo: OfflineEngine, build: Build) -> None:
    """Sequences with and without penalties come and go in three slots, ended by stop tokens one step late."""
    styles = (GREEDY, PLAIN, SEEDED, SEEDED)
    requests = [
        submit(
            key, PROMPT[: 1 + 7 * key % 40], 3 + 5 * key % 11, stop_token_ids=list(range(key % 5, VOCAB, 23)),
            **styles[key % 4],
        )
        for key in range(12)
    ]  # fmt: skip
    outputs = build(max_sequences=3, max_step_tokens=40).generate(requests)
    for key, output in each_alone(octavo, requests).items():
        assert bits(outputs[key, 0]) == bits(output), f"request {key}"
