from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from octavo_engine import messages, step_loop
from octavo_engine.budget import StepBudget
from octavo_engine.pages import PagePool
from octavo_engine.scheduler import Scheduler, SchedulerConfig
from octavo_engine.sequence import FinishReason, Sampled, StepPlan
from octavo_engine.step_loop import BEAT_S, QUIET_S, STEP_FAILED, StepLoop, StepLoopFailed
from structlog.testing import capture_logs
from support.core_submit import submit
from support.fake_core import POISON, FakeRunner, FakeStep, expected_tokens


class Script:
    """The front's end of the pipe: says its lines when the loop listens, and keeps what the loop says."""

    def __init__(self, *lines: list[messages.Command] | Callable[[], list[messages.Command]]) -> None:
        self.frames: list[messages.StepFrame] = []
        self.flushed: list[int] = []
        self.waits: list[float | None] = []
        self._lines = list(lines)

    def poll(self) -> list[messages.Command]:
        if not self._lines:
            return []
        line = self._lines.pop(0)
        return line() if callable(line) else line

    def wait(self, timeout_s: float | None) -> list[messages.Command]:
        self.waits.append(timeout_s)
        return self.poll() if self._lines else [messages.Shutdown()]

    def send(self, report: messages.Report) -> None:
        if isinstance(report, messages.StepFrame):
            self.frames.append(report)
        elif isinstance(report, messages.Flushed):
            self.flushed.append(report.num_pages)

    def tokens(self, key: int) -> list[int]:
        return [
            token
            for frame in self.frames
            for frame_key, token in zip(frame.keys, frame.token_ids, strict=True)
            if frame_key == key
        ]

    @property
    def ends(self) -> dict[int, messages.EndEvent]:
        return {end.key: end for frame in self.frames for end in frame.ends}


def a_scheduler() -> Scheduler:
    config = SchedulerConfig(max_sequences=8, max_model_len=100)
    return Scheduler(config, PagePool(num_pages=40, page_size=4), StepBudget(max_step_tokens=64))


class Ticks:
    """A clock of one millisecond a look."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


def run(script: Script, runner: Any = None) -> Scheduler:
    scheduler = a_scheduler()
    StepLoop(script, scheduler, runner or FakeRunner(None, depth=1), Ticks()).run()
    scheduler.check()
    return scheduler


@pytest.mark.parametrize("depth", [1, 2])
def test_requests_run_to_their_end_whatever_the_depth(depth: int) -> None:
    script = Script([submit(1), submit(2, [21, 22, 23], 5)], [submit(3, [31], 1)])

    scheduler = run(script, FakeRunner(None, depth))

    assert script.tokens(1) == expected_tokens([11, 12], 3)
    assert script.tokens(2) == expected_tokens([21, 22, 23], 5)
    assert script.tokens(3) == expected_tokens([31], 1)
    assert {end.reason for end in script.ends.values()} == {FinishReason.LENGTH}
    assert scheduler.num_requests == 0


def test_depth_2_launches_a_step_before_the_one_before_is_read() -> None:
    log: list[str] = []

    class Step(FakeStep):
        def result(self) -> Sampled:
            log.append(f"read {self._plan.step_id}")
            return super().result()

    class Runner(FakeRunner):
        def launch(self, plan: StepPlan) -> FakeStep:
            log.append(f"launch {plan.step_id}")
            return Step(plan, None)

    run(Script([submit(1, max_tokens=3)]), Runner(None, depth=2))

    assert log == ["launch 1", "launch 2", "read 1", "launch 3", "read 2", "read 3"]


def test_a_burst_that_finds_the_device_idle_is_taken_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_loop, "_FIRST_TOKENS", 4)
    keys: list[list[int]] = []

    class Runner(FakeRunner):
        def launch(self, plan: StepPlan) -> FakeStep:
            keys.append([row.sequence.request.key for row in plan.rows])
            return super().launch(plan)

    script = Script(
        [submit(1, [11, 12]), submit(2, [13, 14]), submit(3, [15, 16]), messages.Cancel(2), submit(4, [17])]
    )
    run(script, Runner(None, depth=2))

    assert [sorted(step) for step in keys[:2]] == [[1, 2], [1, 3, 4]]
    assert script.ends[2].reason == FinishReason.CANCELLED
    assert {script.ends[key].reason for key in (1, 3, 4)} == {FinishReason.LENGTH}


def test_frames_are_numbered_and_count_the_submits_taken() -> None:
    script = Script([submit(1)], [submit(2)])
    run(script)

    assert [frame.step_id for frame in script.frames] == list(range(1, len(script.frames) + 1))
    assert script.frames[0].load.num_taken == 1
    assert script.frames[-1].load.num_taken == 2


def test_the_loop_waits_long_only_when_nothing_is_there() -> None:
    script = Script([submit(1, max_tokens=20), messages.Credit(1, 2)], [], [], [], [messages.Cancel(1)])
    run(script)

    assert script.waits[0] is None, "before the first request"
    assert script.waits[1] == BEAT_S, "the request is paused: the front must hear that the core lives"
    assert script.waits[-1] == QUIET_S, "after the cancel: if nothing comes soon, it is time to tidy up"
    assert script.ends[1].reason == FinishReason.CANCELLED


def test_a_paused_request_ends_at_its_deadline() -> None:
    script = Script([submit(1, max_tokens=20, deadline_ns=30_000_000), messages.Credit(1, 2)], *[[]] * 40)
    run(script)

    assert script.ends[1].reason == FinishReason.DEADLINE
    assert any(wait is not None and wait < BEAT_S for wait in script.waits)


def test_a_request_that_the_scheduler_refuses_ends_with_its_reason() -> None:
    script = Script([submit(1, [5] * 200, n=2)])
    run(script)

    ends = [end for frame in script.frames for end in frame.ends]
    assert [(end.choice, end.reason, end.last) for end in ends] == [
        (0, FinishReason.ERROR, False),
        (1, FinishReason.ERROR, True),
    ]
    assert ends[0].error


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_raises_ends_its_requests_and_later_ones_run(depth: int) -> None:
    script = Script([submit(1, [POISON]), submit(2)], [], [], [], [submit(3)])

    scheduler = run(script, FakeRunner(None, depth))

    assert [(script.ends[key].reason, script.ends[key].error) for key in (1, 2)] == [
        (FinishReason.ERROR, STEP_FAILED)
    ] * 2
    assert script.tokens(3) == expected_tokens([11, 12], 3)
    assert scheduler.pool.num_in_use == 0


def test_a_launch_that_raises_ends_the_steps_in_flight_too() -> None:
    class Runner(FakeRunner):
        def launch(self, plan: StepPlan) -> FakeStep:
            if plan.step_id == 2:
                raise RuntimeError("broken")
            return super().launch(plan)

    script = Script([submit(1)], [], [], [submit(2)])
    run(script, Runner(None, depth=2))

    assert script.ends[1].error == STEP_FAILED
    assert script.tokens(2) == expected_tokens([11, 12], 3)


def test_failure_after_failure_ends_the_loop() -> None:
    script = Script(*[[submit(key, [POISON])] for key in range(1, 5)])

    with pytest.raises(StepLoopFailed):
        run(script)
    assert len(script.ends) == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
        type("AcceleratorError", (RuntimeError,), {})("lost"),
    ],
)
def test_a_lost_device_ends_the_loop_at_once(error: Exception) -> None:
    class Runner(FakeRunner):
        def launch(self, plan: StepPlan) -> FakeStep:
            del plan
            raise error

    with pytest.raises(StepLoopFailed):
        run(Script([submit(1)]), Runner(None, depth=1))


def test_a_lack_of_memory_is_not_a_lost_device() -> None:
    class Runner(FakeRunner):
        def launch(self, plan: StepPlan) -> FakeStep:
            if plan.step_id == 1:
                raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA error: out of memory")
            return super().launch(plan)

    script = Script([submit(1)], [], [submit(2)])
    run(script, Runner(None, depth=1))

    assert script.tokens(2) == expected_tokens([11, 12], 3)


def test_hand_off_ends_every_request() -> None:
    script = Script([submit(1, max_tokens=50), submit(2, max_tokens=50)], [], [messages.HandOff()])
    run(script)

    assert {end.reason for end in script.ends.values()} == {FinishReason.HANDOFF}


def test_flush_answers_with_the_pages_dropped() -> None:
    script = Script([submit(1, list(range(10, 22)), 1)], [], [], [messages.Flush()], [messages.Flush()])
    run(script)

    assert script.flushed == [3, 0]
    assert sum(len(frame.pages_stored) for frame in script.frames) == 3
    assert sum(len(frame.pages_evicted) for frame in script.frames) == 3


def test_cancel_of_a_choice_lets_the_others_run() -> None:
    script = Script([submit(1, n=2, max_tokens=4)], [], [], [messages.Cancel(1, (1,))])
    run(script)

    ends = [(end.choice, end.reason, end.last) for frame in script.frames for end in frame.ends]
    assert ends == [(1, FinishReason.CANCELLED, False), (0, FinishReason.LENGTH, True)]


class Leaver:
    """Garbage that only a full collection finds, once an earlier one has found it in use."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The core's own way: it collects when it decides to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_an_idle_loop_collects_all_garbage_once_nothing_has_come_for_a_while() -> None:
    leaver = Leaver()
    for generation in (0, 1):
        gc.collect(generation)  # ages it
    remains = weakref.ref(leaver)
    del leaver
    seen: list[tuple[float | None, bool]] = []

    def note() -> list[messages.Command]:
        seen.append((script.waits[-1], remains() is not None))
        return []

    script = Script([submit(1)], *[note] * 9)
    run(script)

    assert script.waits[:3] == [None, QUIET_S, None]
    assert (QUIET_S, True) in seen
    assert seen[-1] == (None, False)


class ColdRunner(FakeRunner):
    """Has steps of two sizes to prepare."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(None, depth=2)
        self._log = log
        self._num_cold = 2

    @property
    def is_warm(self) -> bool:
        return self._num_cold == 0

    def launch(self, plan: StepPlan) -> FakeStep:
        self._log.append("step")
        return super().launch(plan)

    def warm_next(self) -> None:
        self._log.append("warm")
        self._num_cold -= 1


def test_an_idle_loop_warms_up_once_nothing_has_come_for_a_while_and_says_when_it_is_done() -> None:
    log: list[str] = []
    # Nothing comes at first; then a request, while the second size is still cold; then nothing again.
    script = Script([], [submit(1, max_tokens=2)], *[[]] * 5)
    run(script, ColdRunner(log))

    assert script.waits[0] == QUIET_S
    assert log == ["warm", "step", "step", "warm"]
    assert len(script.tokens(1)) == 2
    warming = [frame.load.is_warming for frame in script.frames]
    assert warming[0]
    assert warming == sorted(warming, reverse=True)
    assert not warming[-1]


def test_a_size_that_cannot_be_prepared_keeps_no_other_from_it() -> None:
    log: list[str] = []

    class Runner(ColdRunner):
        def warm_next(self) -> None:
            super().warm_next()
            if log == ["warm"]:
                raise RuntimeError("Triton Error [CUDA]: out of memory")

    script = Script([], [submit(1, max_tokens=2)], *[[]] * 5)
    run(script, Runner(log))

    assert log == ["warm", "step", "step", "warm"]
    assert not script.frames[-1].load.is_warming


def test_preparing_that_keeps_failing_comes_to_an_end() -> None:
    class Runner(ColdRunner):
        num_tried = 0

        def warm_next(self) -> None:
            self.num_tried += 1
            raise RuntimeError("too large")

    script, runner = Script([], [submit(1, max_tokens=2)], *[[]] * 9), Runner([])
    run(script, runner)

    assert runner.num_tried == 3
    assert len(script.tokens(1)) == 2
    assert not script.frames[-1].load.is_warming


def test_a_launch_that_makes_everybody_wait_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo_engine.step_loop._SLOW_LAUNCH_S", 0.0)
    with capture_logs() as logged:
        run(Script([submit(1, [10, 20], 2)]), FakeRunner(None, depth=2))
    slow = [entry for entry in logged if entry["event"] == "step_launch_slow"]
    assert [(entry["num_tokens"], entry["num_rows"]) for entry in slow] == [(2, 1), (1, 1)]
    assert all(entry["seconds"] > 0 for entry in slow)


@pytest.mark.usefixtures("no_collector")
def test_steps_leave_nothing_that_needs_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([submit(key, [10 + key, 20], 6, n=1 + key % 3) for key in range(1, 30)])
    with monkeypatch.context() as patch:
        patch.setattr(gc, "collect", lambda _generation=2: 0)
        run(script)

    assert len(script.ends) == 29
    assert gc.collect() == 0
