"""What the step loop asks of a backend: run the plan of a step, give the sampled tokens. Two backends implement it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from octavo_engine.sequence import Sampled, StepPlan


class InFlight(Protocol):
    """A launched step."""

    def result(self) -> Sampled:
        """Wait for the step and return its tokens. Called once, in launch order."""
        ...


class Runner(Protocol):
    """Runs steps of one model over one pool of pages.

    Attributes:
        depth: steps that may be in flight: 1 where `launch` computes at once (CPU), 2 where the next step is launched
            before the last one's tokens are read (the backend then feeds sampled tokens to itself, by slot).
    """

    depth: int

    @property
    def is_warm(self) -> bool:
        """Whether steps of every usual size have been prepared; until then `warm_next` has something to do."""
        ...

    def launch(self, plan: StepPlan) -> InFlight:
        """Start a step: apply `plan.copies`, compute every row, sample where a row asks for it."""
        ...

    def warm_next(self) -> None:
        """Prepare steps of one more size; called while there is nothing to compute. Well below a second, if compiled."""
        ...

    def close(self) -> None:
        """Give memory and threads back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the rest of the engine must know about a loaded model; the fields of `messages.Ready`."""

    name: str
    revision: str
    tokenizer_revision: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    page_size: int
    num_pages: int
    backend: str
    device: str
    dtype: str
    numerics: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to run."""

    runner: Runner
    facts: ModelFacts
