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


class Compiling:
    """Stands for kernels that are being compiled; ends when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.has_ended = self.is_closed = False
        self._error = error

    def ends_within(self, _seconds: float) -> bool:
        return self.has_ended

    def result(self) -> None:
        assert self.has_ended
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.has_ended = self.is_closed = True


def test_steps_are_prepared_once_their_kernels_are_compiled(graphs: list[Replay]) -> None:
    octavo, prepared = capturing()
    runner: Any = octavo._runner
    compiling = runner._compiling = Compiling()
    runner.warm_next()
    assert not graphs
    assert not runner.is_warm
    compiling.has_ended = True
    octavo.prepare()
    assert runner.is_warm
    assert len(graphs) > 10
    assert prepared.is_complete


@pytest.mark.usefixtures("graphs")
def test_kernels_that_do_not_compile_are_told_of_once_and_do_not_keep_steps_from_being_prepared() -> None:
    octavo, _ = capturing()
    runner: Any = octavo._runner
    runner._compiling = Compiling(RuntimeError("no compiler"))
    runner._compiling.has_ended = True
    compiling = runner._compiling
    with pytest.raises(RuntimeError, match="no compiler"):
        runner.warm_next()
    assert compiling.is_closed
    octavo.prepare()
    assert runner.is_warm


@pytest.mark.usefixtures("graphs")
def test_penalties_count_on_where_steps_were_captured_before_all_kernels_were_compiled() -> None:
    def penalized(key: int) -> Any:
        return submit(key, [3] * 4, 20, frequency_penalty=1.5)

    octavo, prepared = capturing()
    runner: Any = octavo._runner
    compiling = runner._compiling = Compiling()
    [first] = octavo.generate([penalized(1)]).values()
    assert any(shape.penalizes for shape in prepared._decode_steps)
    compiling.has_ended = True
    runner.warm_next()
    [second] = octavo.generate([penalized(2)]).values()
    assert len(set(first.token_ids)) > 1
    assert second.token_ids == first.token_ids


@pytest.mark.usefixtures("graphs")
def test_closing_ends_what_is_still_being_compiled() -> None:
    octavo, _ = capturing()
    runner: Any = octavo._runner
    compiling = runner._compiling = Compiling()
    runner.close()
    assert compiling.is_closed
