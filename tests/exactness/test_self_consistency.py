"""One request gives the same bits however it is batched, chunked, cached, preempted or forked."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from octavo.page_hash import token_bytes
from octavo_engine.backends.cpu_linear import bfloat16_is_fast
from octavo_engine.offline import OfflineEngine, Output
from support.core_submit import submit
from support.gpu import NEEDS_GPU
from support.tiny_models import VOCAB, alone, engine, write_model

GREEDY: dict[str, Any] = {"temperature": 0.0}
SEEDED: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 2**63 + 11}
STYLES = pytest.mark.parametrize("style", [GREEDY, SEEDED], ids=["greedy", "seeded"])
NUM_TOKENS = 40
_RNG = random.Random(5)
PROMPT = [_RNG.randrange(3, VOCAB) for _ in range(75)]
OTHERS = [[_RNG.randrange(3, VOCAB) for _ in range(length)] for length in (3, 31, 64, 120, 9, 50)]

Build = Callable[..., OfflineEngine]


ON_GPU = {"device": "cuda", "dtype": "bfloat16"}


NEEDS_BFLOAT16 = pytest.mark.skipif(not bfloat16_is_fast(), reason="needs a CPU with bfloat16 arithmetic")
NAMES = ("llama", "qwen3", "mistral-window")
MODELS = [
    *(pytest.param((name, {}), id=name) for name in NAMES),
    pytest.param(("llama", {"dtype": "bfloat16"}), id="llama-bfloat16", marks=NEEDS_BFLOAT16),
    *(pytest.param((name, ON_GPU), id=f"{name}-gpu", marks=NEEDS_GPU) for name in NAMES),
]


@pytest.fixture(scope="module", params=MODELS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    name, machine = request.param
    directory: Path = tmp_path_factory.mktemp(name)
    write_model(directory, name)

    def built(**settings: Any) -> OfflineEngine:
        return engine(directory, **({"numerics": "exact"} | machine | settings))

    return built


def until_first_difference(one: Output, other: Output) -> tuple[Output, Output]:
    """Return both up to the first token in which they differ: what follows it are continuations of different texts."""
    pairs = zip(one.token_ids, other.token_ids, strict=True)
    count = next((index for index, (left, right) in enumerate(pairs) if left != right), len(one.token_ids))
    return tuple(Output(token_ids=each.token_ids[:count], logprobs=each.logprobs[:count]) for each in (one, other))  # type: ignore[return-value]


def same_bits(output: Output, expected: Output) -> bool:
    return output.token_ids == expected.token_ids and output.logprobs == expected.logprobs


@STYLES
def test_batched_equals_alone(build: Build, style: dict[str, Any]) -> None:
    octavo = build()
    expected = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style))
    assert len(expected.token_ids) == NUM_TOKENS
    octavo.scheduler.flush()
    others = [submit(10 + i, prompt, 20 + 7 * i, **style) for i, prompt in enumerate(OTHERS)]
    outputs = octavo.generate([*others[:3], submit(1, PROMPT, NUM_TOKENS, **style), *others[3:]])
    assert same_bits(outputs[1, 0], expected)


@STYLES
def test_every_chunk_size_gives_the_same(build: Build, style: dict[str, Any]) -> None:
    expected = alone(build(), submit(0, PROMPT, NUM_TOKENS, **style))
    for chunk in (1, 2, 7, 16, 17, 33, 64, 74):
        octavo = build(max_step_tokens=chunk)
        assert same_bits(alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style)), expected), f"chunks of {chunk}"


@STYLES
def test_two_threads_give_the_same(build: Build, style: dict[str, Any]) -> None:
    expected = alone(build(), submit(0, PROMPT, NUM_TOKENS, **style))
    assert same_bits(alone(build(threads=2), submit(0, PROMPT, NUM_TOKENS, **style)), expected)


@STYLES
def test_prefix_hit_equals_miss(build: Build, style: dict[str, Any]) -> None:
    octavo = build()
    expected = alone(octavo, submit(0, PROMPT, NUM_TOKENS, **style))
    hit = octavo.generate([submit(1, PROMPT, NUM_TOKENS, **style)])[1, 0]
    assert hit.end is not None
    assert hit.end.cached_tokens == 64  # four of the prompt's pages; the fifth is not full
    assert same_bits(hit, expected)


@STYLES
def test_preempted_equals_undisturbed(build: Build, style: dict[str, Any]) -> None:
    expected = {
        key: alone(build(), submit(key, prompt, NUM_TOKENS, **style)) for key, prompt in enumerate([PROMPT, *OTHERS])
    }
    crowded = build(num_pages=22, watermark=0.0)
    requests = [submit(key, prompt, NUM_TOKENS, **style) for key, prompt in enumerate([PROMPT, *OTHERS])]
    outputs = crowded.generate(requests)
    ends = [output.end for output in outputs.values()]
    assert sum(end.num_preemptions for end in ends if end is not None) > 0, "nothing was preempted: the test is void"
    for key, output in expected.items():
        assert same_bits(outputs[key, 0], output), f"request {key}"


def test_choices_of_a_fork_equal_requests_of_their_own(build: Build) -> None:
    style = SEEDED | {"seed": 77}
    octavo = build()
    forked = octavo.generate([submit(0, PROMPT, NUM_TOKENS, n=4, **style)])
    for choice in range(4):
        own = alone(build(), submit(0, PROMPT, NUM_TOKENS, **(style | {"seed": 77 + choice})))
        assert same_bits(forked[0, choice], own), f"choice {choice}"
    assert len({tuple(output.token_ids) for output in forked.values()}) == 4


@STYLES
def test_resumed_elsewhere_equals_undisturbed(build: Build, style: dict[str, Any]) -> None:
    whole = alone(build(), submit(0, PROMPT, NUM_TOKENS, **style))
    for done in (1, 4, 5, 39):
        committed = [token_bytes(whole.token_ids[:done])]
        resumed = alone(build(), submit(0, PROMPT, NUM_TOKENS, committed=committed, **style))
        assert resumed.token_ids == whole.token_ids[done:], f"moved after {done} tokens"
        assert resumed.logprobs == whole.logprobs[done:]


@STYLES
def test_fast_numerics_agree_closely(build: Build, style: dict[str, Any]) -> None:
    expected = alone(build(), submit(0, PROMPT, NUM_TOKENS, **style))
    fast = build(numerics="fast")
    requests = [submit(key, prompt, NUM_TOKENS, **style) for key, prompt in enumerate([PROMPT, *OTHERS])]
    output = fast.generate(requests)[0, 0]
    if fast.facts.dtype != "float32":
        output, expected = until_first_difference(output, expected)
        assert len(output.token_ids) >= 1
    assert output.token_ids == expected.token_ids
    # Rounded to bfloat16, sums in another order differ by units in the last place, and with them what follows.
    is_float32 = fast.facts.dtype == "float32"
    assert output.logprobs == pytest.approx(expected.logprobs, abs=1e-4 if is_float32 else 0.2)
