"""The engine's heart: intake, plan, run, publish, over and over, on the core's only thread.

With a runner of depth 2 the loop works one step ahead: while step n computes, n + 1 is planned and launched, then n's
results are read and published.
"""

from __future__ import annotations

import gc
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import structlog
from octavo.errors import OctavoError

from octavo_engine import messages
from octavo_engine.ends import bare_ends
from octavo_engine.outcome import StepOutcome
from octavo_engine.runner import InFlight, Runner
from octavo_engine.scheduler import Scheduler
from octavo_engine.sequence import FinishReason, Priority, Request, Sampling, StepPlan

STEP_FAILED: Final = "engine_step_failed"
BEAT_S: Final = 0.1
"""With requests that cannot move (no credit, no pages) a frame still goes out this often: it shows that the core lives."""

QUIET_S: Final = 1.0
"""So long after its last request an idle core collects all its garbage, which may take longer than a step should wait.

A core that is never idle does without: what the loop and the scheduler make has no cycles and needs no collector."""

_SLOW_LAUNCH_S = 0.5  # it compiled or loaded kernels, or captured a graph: everybody's tokens waited for that
_MAX_FAILURES_IN_A_ROW = 3
_TOKEN_BYTES = 4
_FIRST_TOKENS = 16_384  # prompt tokens that keep a device busy while the rest of a burst is taken
_STEPS_BETWEEN_COLLECTIONS = 2000
_log = structlog.get_logger()


class CommandPipe(Protocol):
    """The loop's way to the front: `pipe.CorePipe`, or a loopback in one process."""

    def poll(self) -> list[messages.Command]:
        """Return what has arrived, without waiting."""
        ...

    def wait(self, timeout_s: float | None) -> list[messages.Command]:
        """Wait for a command, at most so long, and return what has arrived."""
        ...

    def send(self, report: messages.Report) -> None:
        """Queue a report."""
        ...


class StepLoopFailed(Exception):
    """The loop cannot go on: the device is lost, or step after step fails."""


@dataclass(frozen=True, slots=True)
class _Launched:
    plan: StepPlan
    started_ns: int
    step: InFlight


@dataclass(frozen=True, slots=True)
class _Result:
    outcome: StepOutcome
    started_ns: int
    ended_ns: int
    num_tokens: int


class StepLoop:
    """Runs the steps of one core.

    Args:
        pipe: commands in, step frames out.
        scheduler: decides what a step computes.
        runner: computes it.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self, pipe: CommandPipe, scheduler: Scheduler, runner: Runner, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._pipe = pipe
        self._scheduler = scheduler
        self._runner = runner
        self._clock = clock
        self._launched: deque[_Launched] = deque()
        self._deferred: list[messages.Command] = []
        self._is_stopping = False
        self._has_work = False
        self._is_warming = not runner.is_warm
        self._is_littered = False  # whether requests came since the last full collection
        self._num_taken = 0
        self._num_frames = 0
        self._num_failures = 0
        self._num_warm_up_failures = 0
        self._published_ns = 0

    def run(self) -> None:
        """Step until told to stop.

        Raises:
            FrontGone: the front process is gone.
            StepLoopFailed: steps keep failing.
        """
        if self._is_warming:
            self._tell_load()
        while not self._is_stopping:
            self._intake()
            plan = self._plan()
            result = self._run(plan)
            self._publish(result)

    def _intake(self) -> None:
        """Apply what the front asks; wait for it only when there is nothing to compute.

        Of a burst of prompts that finds the device idle only the first are taken at once: the others are hashed while
        the first ones compute.
        """
        commands = self._deferred + (self._pipe.poll() if self._has_work or self._deferred else self._rest())
        self._deferred = []
        is_idle = self._runner.depth > 1 and not self._launched
        num_tokens = 0
        for index, command in enumerate(commands):
            self._apply(command)
            num_tokens += len(command.prompt) // _TOKEN_BYTES if isinstance(command, messages.Submit) else 0
            if is_idle and num_tokens >= _FIRST_TOKENS:
                self._deferred = commands[index + 1 :]
                return

    def _rest(self) -> list[messages.Command]:
        """Wait for the front; tidy up and prepare, for now nobody waits for a token."""
        gc.collect(1)
        patience_s = self._patience_s()
        if patience_s is not None or not (self._is_littered or self._is_warming):
            return self._pipe.wait(patience_s)
        commands = self._pipe.wait(QUIET_S)
        if not commands and self._is_littered:
            gc.collect()
            self._is_littered = False
        while not commands and self._is_warming:
            self._warm_next()
            commands = self._pipe.poll()
        return commands

    def _warm_next(self) -> None:
        """Let the runner prepare steps of one more size; tell the front when none is left."""
        try:
            self._runner.warm_next()
            self._is_warming = not self._runner.is_warm
        except Exception as error:  # steps of this size may never be asked for
            _log.error("warm_up_failed", exc_info=error)
            if _is_sticky(error):
                raise StepLoopFailed from error
            self._num_warm_up_failures += 1
            self._is_warming = not self._runner.is_warm and self._num_warm_up_failures < _MAX_FAILURES_IN_A_ROW
        if not self._is_warming:
            self._tell_load()

    def _tell_load(self) -> None:
        now = self._clock()
        self._num_frames += 1
        self._pipe.send(self._frame(_Result(StepOutcome(), now, now, 0)))

    def _plan(self) -> StepPlan | None:
        return self._scheduler.plan(self._clock())

    def _run(self, plan: StepPlan | None) -> _Result:
        """Launch the planned step; read the oldest one if the pipeline is full or nothing more can be launched."""
        try:
            if plan is not None:
                self._launch(plan)
            if self._launched and (plan is None or len(self._launched) >= self._runner.depth):
                return self._read_oldest()
        except Exception as error:  # noqa: BLE001 - the outermost frame of a step: its requests end, the others go on
            return self._fail(plan, error)
        self._has_work = bool(self._launched)
        now = self._clock()
        return _Result(self._scheduler.drain(), now, now, 0)

    def _launch(self, plan: StepPlan) -> None:
        started_ns = self._clock()
        step = self._runner.launch(plan)
        seconds = (self._clock() - started_ns) / 1e9
        if self._runner.depth > 1 and seconds > _SLOW_LAUNCH_S:  # with depth 1 the launch is the step
            _log.warning("step_launch_slow", seconds=seconds, num_tokens=plan.num_tokens, num_rows=len(plan.rows))
        self._launched.append(_Launched(plan, started_ns, step))

    def _publish(self, result: _Result) -> None:
        """Tell the front what happened, if anything did."""
        now = self._clock()
        is_beat_due = self._scheduler.num_requests > 0 and now - self._published_ns >= BEAT_S * 1e9
        if result.outcome.is_empty and not result.num_tokens and not is_beat_due:
            return
        self._published_ns = now
        self._num_frames += 1
        if self._num_frames % _STEPS_BETWEEN_COLLECTIONS == 0:
            gc.collect(0)
        self._pipe.send(self._frame(result))

    def _read_oldest(self) -> _Result:
        launched = self._launched[0]
        sampled = launched.step.result()
        self._launched.popleft()
        ended_ns = self._clock()
        outcome = self._scheduler.commit(launched.plan, sampled, ended_ns)
        self._num_failures = 0
        self._has_work = True
        return _Result(outcome, launched.started_ns, ended_ns, launched.plan.num_tokens)

    def _fail(self, plan: StepPlan | None, error: Exception) -> _Result:
        """End every request of the steps in flight: what they wrote cannot be told."""
        self._num_failures += 1
        plans = [launched.plan for launched in self._launched]
        if plan is not None and (not plans or plans[-1] is not plan):
            plans.append(plan)
        self._launched.clear()
        _log.error("step_failed", exc_info=error, step_id=plans[0].step_id, num_in_a_row=self._num_failures)
        if self._num_failures >= _MAX_FAILURES_IN_A_ROW or _is_sticky(error):
            raise StepLoopFailed from error
        self._has_work = True
        now = self._clock()
        return _Result(_joined([self._scheduler.fail(failed, STEP_FAILED) for failed in plans]), now, now, 0)

    def _apply(self, command: messages.Command) -> None:
        if isinstance(command, messages.Submit):
            self._num_taken += 1
            self._is_littered = True
            self._add(command)
        elif isinstance(command, messages.Cancel):
            self._scheduler.cancel(command.key, command.choices)
        elif isinstance(command, messages.Credit):
            self._scheduler.set_credit(command.key, command.max_output_tokens)
        elif isinstance(command, messages.Flush):
            self._pipe.send(messages.Flushed(self._scheduler.flush()))
        elif isinstance(command, messages.HandOff):
            self._scheduler.hand_off()
        else:
            self._is_stopping = True

    def _add(self, command: messages.Submit) -> None:
        try:
            self._scheduler.add(request_of(command), self._clock())
        except OctavoError as error:  # the front checks the same limits first
            _log.warning("request_refused_by_core", reason=error.reason)
            now = self._clock()
            choices = set(range(command.n)).difference(command.finished_choices)
            outcome = StepOutcome(ends=bare_ends(command.key, choices, FinishReason.ERROR, error.reason))
            self._pipe.send(self._frame(_Result(outcome, now, now, 0)))

    def _patience_s(self) -> float | None:
        if self._scheduler.num_requests == 0:
            return None
        deadline_ns = self._scheduler.next_deadline_ns
        if deadline_ns is None:
            return BEAT_S
        return max(0.0, min(BEAT_S, (deadline_ns - self._clock()) / 1e9))

    def _frame(self, result: _Result) -> messages.StepFrame:
        outcome = result.outcome
        return messages.StepFrame(
            step_id=self._num_frames,
            started_ns=result.started_ns,
            ended_ns=result.ended_ns,
            num_tokens=result.num_tokens,
            keys=outcome.keys,
            choices=outcome.choices,
            positions=outcome.positions,
            token_ids=outcome.token_ids,
            logprobs=outcome.logprobs,
            started=outcome.started,
            chunks=outcome.chunks,
            preempted=outcome.preempted,
            ends=outcome.ends,
            pages_stored=outcome.pages_stored,
            pages_evicted=outcome.pages_evicted,
            load=msgspec.structs.replace(
                self._scheduler.load(), num_taken=self._num_taken, is_warming=self._is_warming
            ),
        )


def request_of(command: messages.Submit) -> Request:
    """Return the scheduler's form of a request."""
    return Request(
        key=command.key,
        prompt=_token_ids(command.prompt),
        sampling=Sampling(
            temperature=command.temperature,
            top_k=command.top_k,
            top_p=command.top_p,
            min_p=command.min_p,
            frequency_penalty=command.frequency_penalty,
            presence_penalty=command.presence_penalty,
            repetition_penalty=command.repetition_penalty,
            seed=command.seed,
            max_tokens=command.max_tokens,
            min_tokens=command.min_tokens,
            stop_token_ids=frozenset(command.stop_token_ids),
            n=command.n,
        ),
        priority=Priority(command.priority),
        arrival_ns=command.arrival_ns,
        deadline_ns=command.deadline_ns,
        page_hash_root=command.page_hash_root,
        committed=tuple(tuple(_token_ids(output)) for output in command.committed),
        finished_choices=frozenset(command.finished_choices),
        expected_cached=command.expected_cached,
    )


def _token_ids(raw: bytes) -> list[int]:
    token_ids = array("I")
    token_ids.frombytes(raw)
    if sys.byteorder != "little":
        token_ids.byteswap()
    return token_ids.tolist()


def _joined(outcomes: list[StepOutcome]) -> StepOutcome:
    """Return what several outcomes tell, as one. Outcomes of failed steps have no tokens."""
    joined = StepOutcome()
    for outcome in outcomes:
        joined.started += outcome.started
        joined.chunks += outcome.chunks
        joined.preempted += outcome.preempted
        joined.ends += outcome.ends
        joined.pages_stored += outcome.pages_stored
        joined.pages_evicted += outcome.pages_evicted
    return joined


def _is_sticky(error: Exception) -> bool:
    """Tell whether the device is lost with this error: a CUDA context never recovers, except from a lack of memory."""
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
        return False
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error) or "[CUDA]" in str(error)
