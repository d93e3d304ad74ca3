"""An engine core whose model is arithmetic and whose steps take a set time: starts in a moment, leaves the processor alone.

Everything else of the engine is real: scheduler, page pool, prefix cache, front, link. A token depends on those before it,
on its position and on the seed, as a model's does, so what a resumed request gets wrong shows. Run as a program by
`paced_engine.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from octavo.revision import tokenizer_revision
from octavo_engine.config import EngineConfig
from octavo_engine.core import main
from octavo_engine.runner import Loaded
from octavo_engine.sequence import Row, Sampled, StepPlan
from octavo_engine.stand_in import StandInRunner, mixed, stand_in

STEP_S: Final = 0.005
VOCAB_SIZE: Final = 512
EOS: Final = 2
_FIRST, _LAST = 3, 480  # neither special tokens nor padding
_STEPS_TO_EOS = 101  # on average


class PacedRunner(StandInRunner):
    """Computes steps by arithmetic, and waits."""

    def launch(self, plan: StepPlan) -> PacedStep:
        return PacedStep(plan)


class PacedStep:
    """A launched step."""

    def __init__(self, plan: StepPlan) -> None:
        self._plan = plan

    def result(self) -> Sampled:
        time.sleep(STEP_S)
        drawn = [_draw(row) for row in self._plan.rows if row.samples]
        return Sampled(token_ids=[token for token, _ in drawn], logprobs=[logprob for _, logprob in drawn])


def _draw(row: Row) -> tuple[int, float]:
    greedy = row.sequence.request.sampling.temperature == 0
    state = mixed(row.sequence.tokens, row.start + row.num_tokens, seed=1 if greedy else row.sequence.seed + 2)
    token = EOS if state % _STEPS_TO_EOS == 0 and EOS not in row.banned_token_ids else _FIRST + state % (_LAST - _FIRST)
    return token, -(state % 1024) / 64  # exact in any floating-point format


def load(config: EngineConfig, progress: Callable[[str, float], None]) -> Loaded:
    assert config.model is not None
    progress("load weights", 1.0)
    directory = Path(config.model)
    return stand_in(
        PacedRunner(),
        config,
        name=directory.name,
        revision="arithmetic",
        tokenizer_revision=tokenizer_revision(directory),
        max_model_len=1024,
        vocab_size=VOCAB_SIZE,
        eos_token_id=EOS,
    )


if __name__ == "__main__":
    sys.exit(main(load))
