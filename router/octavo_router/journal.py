"""What one request has been given so far: the record from which another engine can go on. Sans-IO.

Engines may come and go; the journal stays. It accepts an output token only at the next position of its choice, so each
token enters exactly once, whoever sends it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Ending(Enum):
    """Why a choice ended, for the client."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Acceptance(Enum):
    """What became of a token."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    GAP = "gap"  # an earlier token is missing: the sender has lost its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends a choice besides its own will."""

    max_tokens: int
    min_tokens: int
    stop_token_ids: frozenset[int]  # with the model's end-of-sequence ids, unless they are ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time at the last engine went, as in octavo.v1.EngineTiming."""

    queue_ns: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    num_prefill_steps: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    peak_pages: int = 0


@dataclass(slots=True)
class ChoiceJournal:
    """Output of one choice: ids and log-probabilities by position, and its end."""

    index: int
    token_ids: array[int] = field(default_factory=lambda: array("I"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    ending: Ending | None = None
    stop_token_id: int | None = None

    def end(self, ending: Ending, *, stop_token_id: int | None = None) -> None:
        """End the choice; the first end counts."""
        if self.ending is None:
            self.ending = ending
            self.stop_token_id = stop_token_id


class Journal:
    """Prompt, output and counts of one request, across all its attempts.

    `num_resumed_tokens` of the output were delivered by another router.
    """

    def __init__(self, prompt_token_ids: Sequence[int], *, num_choices: int, limits: Limits) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.limits = limits
        self.choices = [ChoiceJournal(index) for index in range(num_choices)]
        self.cached_tokens = 0
        self.timing = Timing()
        self.num_attempts = 0
        self.num_moves = 0
        self.num_resumed_tokens = 0

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.ending is not None for choice in self.choices)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def is_committed(self) -> bool:
        """Whether a new attempt has to take output over."""
        return any(choice.token_ids or choice.ending for choice in self.choices)

    def start(self, cached_tokens: int) -> None:
        """Note what the prompt found cached. Once there is output, engines find pages of it too: that does not count."""
        if not self.is_committed:
            self.cached_tokens = min(cached_tokens, len(self.prompt_token_ids))

    def accept(self, index: int, position: int, token_id: int, logprob: float) -> Acceptance:
        """Take a token if it is the next of its choice."""
        if not 0 <= index < len(self.choices):
            return Acceptance.GAP
        choice = self.choices[index]
        if choice.ending is not None or position < len(choice.token_ids):
            return Acceptance.DUPLICATE
        if position > len(choice.token_ids) or position >= self.limits.max_tokens:
            return Acceptance.GAP
        choice.token_ids.append(token_id)
        choice.logprobs.append(logprob)
        return Acceptance.ACCEPTED

    def settle(self) -> None:
        """End the choices whose last token ends them, though the engine was lost before it could say so."""
        for choice in self._running():
            num_tokens = len(choice.token_ids)
            if num_tokens == 0:
                continue
            last = choice.token_ids[-1]
            if last in self.limits.stop_token_ids and num_tokens > self.limits.min_tokens:
                choice.end(Ending.STOP, stop_token_id=last)
            elif num_tokens >= self.limits.max_tokens:
                choice.end(Ending.LENGTH)

    def end_all(self, ending: Ending) -> None:
        """End every choice that still runs."""
        for choice in self._running():
            choice.end(ending)

    def _running(self) -> Iterable[ChoiceJournal]:
        return (choice for choice in self.choices if choice.ending is None)
