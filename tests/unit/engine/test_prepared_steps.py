"""Steps that are captured while nobody waits, or when they come again: a graph replays what it saw, whatever stands in the buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from octavo_engine.offline import OfflineEngine
from octavo_engine.prepared_steps import PreparedSteps
from support.bigram_engine import offline
from support.core_submit import submit

MAX_SEQUENCES, MAX_LEN, MAX_STEP_TOKENS = 20, 64, 48
REQUESTS = [
    submit(key, [1 + key % 9] * (1 + 11 * key % 50), 2 + 5 * key % 9, temperature=0.7, seed=key) for key in range(50)
]


class Replay:
    """Stands for a CUDA graph on a CPU: computes again from the same buffers, into the same outputs."""

    def __init__(self, compute: Callable[[], Any], outputs: tuple[torch.Tensor, ...] | None) -> None:
        self._compute, self._outputs = compute, outputs
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        for output, value in zip(self._outputs or (), self._compute() or (), strict=True):
            output.copy_(value)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    made: list[Replay] = []

    def captured(compute: Callable[[], Any], _pool: object) -> tuple[Replay, Any]:
        outputs = compute()
        made.append(Replay(compute, outputs))
        return made[-1], outputs

    for module in ("decode_step", "chunk_step"):
        monkeypatch.setattr(f"octavo_engine.{module}.captured", captured)
    return made


def capturing() -> tuple[OfflineEngine, PreparedSteps]:
    octavo = offline(
        ahead=True, num_pages=600, max_sequences=MAX_SEQUENCES, max_len=MAX_LEN, max_step_tokens=MAX_STEP_TOKENS
    )
    runner: Any = octavo._runner
    runner.prepared = PreparedSteps(
        runner._decoder, runner._ops, runner._state, runner._buffer,
        max_sequences=MAX_SEQUENCES, max_len=MAX_LEN, max_step_tokens=MAX_STEP_TOKENS, pool="a pool",
    )  # fmt: skip
    return octavo, runner.prepared


@pytest.mark.parametrize("is_idle_first", [True, False], ids=["while idle", "when they come again"])
def test_replayed_steps_give_the_tokens_of_computed_ones(is_idle_first: bool, graphs: list[Replay]) -> None:
    octavo, prepared = capturing()
    assert not prepared.is_complete
    if is_idle_first:
        octavo.prepare()
        assert prepared.is_complete
        num_prepared = len(graphs)
    outputs = octavo.generate(REQUESTS)
    assert sum(graph.num_replays for graph in graphs) > 20
    assert any(step._graph is not None for step in prepared._chunk_steps.values())
    if is_idle_first:
        assert len(graphs) == num_prepared, "all that these requests need was prepared"
    expected = offline(ahead=False, num_pages=600, max_sequences=MAX_SEQUENCES, max_step_tokens=MAX_STEP_TOKENS)
    for at, output in expected.generate(REQUESTS).items():
        assert (outputs[at].token_ids, outputs[at].logprobs) == (output.token_ids, output.logprobs), f"request {at}"


def test_preparing_changes_nobodys_state(graphs: list[Replay]) -> None:
    octavo, prepared = capturing()
    runner: Any = octavo._runner
    runner._state.last_tokens.fill_(7)
    runner._buffer.fill_(77)  # as left by some step
    before = [tensor.clone() for tensor in (runner._state.last_tokens, runner._state.tables)]
    octavo.prepare()
    padding = runner._state.padding
    assert prepared.is_complete
    assert torch.equal(runner._state.last_tokens[:padding], before[0][:padding])
    assert torch.equal(runner._state.tables[:padding], before[1][:padding])
    assert len(graphs) > 10
