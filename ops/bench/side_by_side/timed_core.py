"""An engine core that waits instead of computing, as long as a step of a model on a GPU would take.

Everything else of the engine is real: scheduler, page pool, prefix cache, front, link. Processors stay free for gateways and
clients, so that engines are the bottleneck and figures repeat, which two engines that compute on a small machine do not allow.
The pace stands in OCTAVO_TIMED_PACE. Run as a program by `timed_engine.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Final

from octavo.model_directory import DEFAULT_MODEL, resolve_model
from octavo.revision import tokenizer_revision
from octavo_engine.config import EngineConfig
from octavo_engine.core import main
from octavo_engine.runner import Loaded
from octavo_engine.sequence import Sampled, StepPlan
from octavo_engine.stand_in import StandInRunner, mixed, stand_in
from pace import VARIABLE, Pace

_EOS: Final = 2
_FIRST, _LAST = 1000, 9000  # ids of words and pieces of words in the default model's vocabulary
_VOCAB_SIZE: Final = 49152
_MAX_MODEL_LEN: Final = 8192


class TimedRunner(StandInRunner):
    """Gives each step the time that its tokens take."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def launch(self, plan: StepPlan) -> TimedStep:
        """Begin a step."""
        num_decodes = sum(row.num_tokens == 1 for row in plan.rows)
        return TimedStep(plan, time.monotonic() + self._pace.step_s(plan.num_tokens - num_decodes, num_decodes))


class TimedStep:
    """A launched step."""

    def __init__(self, plan: StepPlan, ends_at: float) -> None:
        self._plan = plan
        self._ends_at = ends_at

    def result(self) -> Sampled:
        """Wait for the step's end; return its tokens."""
        time.sleep(max(0.0, self._ends_at - time.monotonic()))
        rows = [row for row in self._plan.rows if row.samples]
        drawn = (mixed(row.sequence.tokens, row.start + row.num_tokens, seed=1) for row in rows)
        return Sampled(token_ids=[_FIRST + state % (_LAST - _FIRST) for state in drawn], logprobs=[0.0] * len(rows))


def load(config: EngineConfig, progress: Callable[[str, float], None]) -> Loaded:
    """Make the runner; nothing is loaded but the tokenizer's facts."""
    progress("load weights", 1.0)
    directory = resolve_model(config.model or DEFAULT_MODEL)
    return stand_in(
        TimedRunner(Pace.read(os.environ[VARIABLE])),
        config,
        name=directory.name,
        revision="timed",
        tokenizer_revision=tokenizer_revision(directory),
        max_model_len=_MAX_MODEL_LEN,
        vocab_size=_VOCAB_SIZE,
        eos_token_id=_EOS,
        num_pages=4096,
    )


if __name__ == "__main__":
    sys.exit(main(load))
