"""An engine core whose model is arithmetic: tokens without torch, steps that wait at a gate if a test wants to hold them.

Run as a program, it takes the place of `python -m octavo_engine.core`. The environment steers it:

    OCTAVO_FAKE_STEP_GATE   FIFO: each step takes one byte from it before it ends
    OCTAVO_FAKE_LOAD_GATE   FIFO: loading takes one byte from it before it ends
    OCTAVO_FAKE_DEPTH       steps in flight, default 1
    OCTAVO_FAKE_TOKENIZER   revision of the tokenizer that the model claims to have
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from octavo_engine.config import EngineConfig
from octavo_engine.core import main
from octavo_engine.runner import Loaded
from octavo_engine.sequence import Row, Sampled, StepPlan
from octavo_engine.stand_in import StandInRunner, mixed, stand_in

VOCAB_SIZE = 1000
EOS = 0
POISON = 3
"""A prompt that starts with it makes its step raise."""


def expected_tokens(prompt: list[int], num_tokens: int, seed: int = 0) -> list[int]:
    """Return the whole output of a request."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(_next_token(tokens, len(tokens), seed))
    return tokens[len(prompt) :]


def _next_token(tokens: Sequence[int], end: int, seed: int) -> int:
    """Return the token that follows those before `end`: never EOS or POISON."""
    return 10 + mixed(tokens, end, seed + 1) % (VOCAB_SIZE - 10)


class FakeRunner(StandInRunner):
    """Computes steps by arithmetic."""

    def __init__(self, gate: int | None, depth: int) -> None:
        self.depth = depth
        self._gate = gate

    def launch(self, plan: StepPlan) -> FakeStep:
        return FakeStep(plan, self._gate)

    def close(self) -> None:
        if self._gate is not None:
            os.close(self._gate)


class FakeStep:
    """A launched step. Tokens are computed when they are asked for: by then those before are known."""

    def __init__(self, plan: StepPlan, gate: int | None) -> None:
        self._plan = plan
        self._gate = gate

    def result(self) -> Sampled:
        if self._gate is not None:
            os.read(self._gate, 1)
        rows = [row for row in self._plan.rows if row.samples]
        if any(row.sequence.tokens[0] == POISON for row in self._plan.rows):
            raise RuntimeError("poisoned prompt: secret")
        return Sampled(token_ids=[_token(row) for row in rows], logprobs=[-0.5] * len(rows))


def _token(row: Row) -> int:
    return _next_token(row.sequence.tokens, row.start + row.num_tokens, row.sequence.seed)


def load(config: EngineConfig, progress: Callable[[str, float], None]) -> Loaded:
    progress("load weights", 0.5)
    if config.model == "unloadable":
        raise RuntimeError("secret")
    load_gate = os.environ.get("OCTAVO_FAKE_LOAD_GATE")
    if load_gate:
        with open(load_gate, "rb", buffering=0) as fifo:  # noqa: PTH123 - a FIFO
            fifo.read(1)
    step_gate = os.environ.get("OCTAVO_FAKE_STEP_GATE")
    # Opened for writing too, so that the gate stays open when a test closes its end.
    gate = os.open(step_gate, os.O_RDWR) if step_gate else None
    return stand_in(
        FakeRunner(gate, int(os.environ.get("OCTAVO_FAKE_DEPTH", "1"))),
        config,
        name="fake",
        revision="revision",
        tokenizer_revision=os.environ.get("OCTAVO_FAKE_TOKENIZER", "tokenizer"),
        max_model_len=4096,
        vocab_size=VOCAB_SIZE,
        eos_token_id=EOS,
    )


if __name__ == "__main__":
    sys.exit(main(load))
