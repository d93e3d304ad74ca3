"""An engine without a service: the same step loop, scheduler and runner in this process, for benchmarks and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from octavo_engine import messages
from octavo_engine.config import EngineConfig
from octavo_engine.core import scheduler_of
from octavo_engine.runner import Loaded
from octavo_engine.step_loop import StepLoop


@dataclass(slots=True)
class Output:
    """Output of one choice of a request; times are monotonic nanoseconds of each token's step."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    end: messages.EndEvent | None = None


class OfflineEngine:
    """Runs requests to their end.

    Args:
        config: as of an engine process; addresses and Redis are ignored.
        loaded: the model.
    """

    def __init__(self, config: EngineConfig, loaded: Loaded) -> None:
        self.facts = loaded.facts
        self.scheduler = scheduler_of(config, loaded.facts)
        self._runner = loaded.runner

    def prepare(self) -> None:
        """Prepare steps of every usual size, as an engine process does while it is idle."""
        while not self._runner.is_warm:
            self._runner.warm_next()

    def generate(
        self,
        requests: Sequence[messages.Submit],
        *,
        on_frame: Callable[[messages.StepFrame], Sequence[messages.Command]] | None = None,
    ) -> dict[tuple[int, int], Output]:
        """Run requests together until all have ended.

        Args:
            requests: submitted before the first step; keys must be unique among them.
            on_frame: sees each frame and may answer with further commands (submits, cancels): a closed loop of clients.

        Returns:
            Outputs by (key, choice).
        """
        pipe = _Loopback(list(requests), on_frame)
        StepLoop(pipe, self.scheduler, self._runner).run()
        return pipe.outputs


class _Loopback:
    """The core's end of a pipe whose other end is this process: a list of commands in, frames gathered."""

    def __init__(
        self,
        commands: list[messages.Command],
        on_frame: Callable[[messages.StepFrame], Sequence[messages.Command]] | None,
    ) -> None:
        self.outputs: dict[tuple[int, int], Output] = {}
        self._commands: list[messages.Command] = commands
        self._on_frame = on_frame
        self._num_open = sum(isinstance(command, messages.Submit) for command in commands)

    def poll(self) -> list[messages.Command]:
        taken, self._commands = self._commands, []
        return taken

    def wait(self, timeout_s: float | None) -> list[messages.Command]:
        del timeout_s  # commands come from frames only: nothing to wait for
        if self._num_open == 0 and not self._commands:
            return [messages.Shutdown()]
        return self.poll()

    def send(self, report: messages.Report) -> None:
        if not isinstance(report, messages.StepFrame):
            return
        for key, choice, token_id, logprob in _tokens(report):
            output = self.outputs.setdefault((key, choice), Output())
            output.token_ids.append(token_id)
            output.logprobs.append(logprob)
            output.times_ns.append(report.ended_ns)
        for end in report.ends:
            self.outputs.setdefault((end.key, end.choice), Output()).end = end
            self._num_open -= end.last
        if self._on_frame is not None:
            more = self._on_frame(report)
            self._num_open += sum(isinstance(command, messages.Submit) for command in more)
            self._commands += more


def _tokens(frame: messages.StepFrame) -> Iterator[tuple[int, int, int, float]]:
    return zip(frame.keys, frame.choices, frame.token_ids, frame.logprobs, strict=True)
