"""What a dispatch is given and what it says first: values only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octavo.v1 import types_pb2

from octavo_router.journal import Limits
from octavo_router.resume import Resumption
from octavo_router.routing import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A validated request.

    Attributes:
        request_id: the client's name for it.
        prompt: the prompt.
        sampling: with seed, max_tokens and n set.
        room: output tokens that an engine's context should have room for.
        expected_output: output tokens that a choice is expected to give.
        stops: stop strings.
        priority: class of service.
        deadline: monotonic seconds.
        resumed: output that the client has from another router; None if this router is the first.
    """

    request_id: str
    prompt: Prompt
    sampling: types_pb2.SamplingParams
    room: int
    expected_output: int
    stops: Sequence[str]
    priority: types_pb2.Priority.ValueType
    deadline: float
    resumed: Resumption | None = None

    def limits(self, eos_token_ids: Iterable[int]) -> Limits:
        """Return what ends a choice at an engine whose model has these end-of-sequence ids."""
        sampling = self.sampling
        return Limits(
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop_token_ids=frozenset(sampling.stop_token_ids).union(() if sampling.ignore_eos else eos_token_ids),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The request is on its way to an engine. The engine's id is empty if all that is left to say is that it has ended."""

    engine_id: str
    matched_pages: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """See the settings of the same names."""

    max_ahead_tokens: int
    max_moves: int
    move_wait_s: float
