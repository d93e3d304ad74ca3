"""One try of one request at one engine: passes what the engine sends into the journal, and knows how the try went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from octavo.errors import OctavoError, Unavailable, from_code
from octavo.v1 import engine_pb2, types_pb2

from octavo_router.journal import Acceptance, Ending, Journal, Timing

_ENDINGS = {
    types_pb2.FINISH_REASON_STOP: Ending.STOP,
    types_pb2.FINISH_REASON_LENGTH: Ending.LENGTH,
    types_pb2.FINISH_REASON_CANCELLED: Ending.CANCELLED,
    types_pb2.FINISH_REASON_DEADLINE: Ending.DEADLINE,
}


ENGINE_SILENT: Final = "engine_silent"
"""Reason of a loss: nothing at all is heard from the engine."""
ENGINE_LEFT: Final = "engine_left"
"""Reason of a loss: the engine ended the stream in order, and the request may never have come there."""
ENGINE_STALLED: Final = "engine_stalled"
"""Reason of a loss: the engine says that its core hangs."""


class Fate(Enum):
    """Why an attempt is over before its request is."""

    LOST = "lost"  # the link broke, the engine hangs or made no sense
    FAILED = "failed"  # the engine says that it failed
    HANDED_OFF = "handed_off"  # the engine drains
    REFUSED = "refused"  # the engine did not take the request


@dataclass(frozen=True, slots=True)
class AttemptOver:
    """An attempt's fate, and the error to give the client if there is no other engine."""

    fate: Fate
    error: OctavoError


class Attempt:
    """What the link calls as messages arrive. `wake` tells the request's task that there is something new."""

    def __init__(self, journal: Journal, *, number: int, wake: Callable[[], None]) -> None:
        self.number = number
        self.over: AttemptOver | None = None
        self._journal = journal
        self._wake = wake
        self._open = {choice.index for choice in journal.choices if choice.ending is None}
        self._told = Timing()  # what the ends of choices said
        self._queue_ns = 0
        self._admitted_ns = self._first_token_ns = self._last_token_ns = 0  # unix time of the engine; 0: not yet

    @property
    def is_open(self) -> bool:
        """Whether the engine has more to say."""
        return self.over is None and bool(self._open)

    def is_choice_open(self, choice: int) -> bool:
        """Whether the engine has not said that a choice has ended."""
        return self.over is None and choice in self._open

    @property
    def timing(self) -> Timing:
        """Where the time went: what the engine said when all has ended, or else what its steps have shown so far."""
        if not self._open:
            return self._told
        has_output = bool(self._first_token_ns)
        return replace(
            self._told,
            queue_ns=self._queue_ns,
            prefill_ns=self._first_token_ns - self._admitted_ns if has_output and self._admitted_ns else 0,
            decode_ns=self._last_token_ns - self._first_token_ns,
        )

    def token(self, choice: int, position: int, token_id: int, logprob: float, at_ns: int) -> None:
        """Take one output token of a step that ended at `at_ns`. Wakes for the first; `wake` is to be called for others."""
        if self.over is not None:
            return
        if self._journal.accept(choice, position, token_id, logprob) is Acceptance.GAP:
            self.lose("engine_out_of_order")
        self._last_token_ns = at_ns
        if not self._first_token_ns:
            self._first_token_ns = at_ns
            self._wake()

    def wake(self) -> None:
        """Tell the request's task that tokens came."""
        self._wake()

    def started(self, message: engine_pb2.Started) -> None:
        """Note that the request runs."""
        self._journal.start(message.cached_tokens)
        self._queue_ns, self._admitted_ns = message.queue_ns, message.at_ns

    def ended(self, message: engine_pb2.ChoiceEnd) -> None:
        """Note the end of one choice, or the end of the attempt if the engine could not go on."""
        if self.over is not None:
            return
        if message.reason == types_pb2.FINISH_REASON_HANDOFF:
            self.hand_over()
        elif (ending := _ENDINGS.get(message.reason)) is None or message.choice >= len(self._journal.choices):
            self._finish(Fate.FAILED, message.error or "engine_failed", "the engine failed")
        else:
            self._open.discard(message.choice)
            stop_token_id = message.stop_token_id if message.HasField("stop_token_id") else None
            self._journal.choices[message.choice].end(ending, stop_token_id=stop_token_id)
            self._told = _timing(message.timing)
            self._wake()

    def refused(self, message: engine_pb2.Rejected) -> None:
        """Note that the engine did not take the request."""
        retry_after_s = message.retry_after_ms / 1000 if message.retry_after_ms else None
        error = from_code(message.code, message.reason, message.message, retry_after_s)
        self.over = self.over or AttemptOver(Fate.REFUSED, error)
        self._wake()

    def hand_over(self) -> None:
        """Note that the engine drains, and leaves the rest to another."""
        self._finish(Fate.HANDED_OFF, "engine_draining", "the engine is draining")

    def lose(self, reason: str) -> None:
        """Note that nothing more will come from this engine."""
        self._finish(Fate.LOST, reason, "the engine was lost and no other can take the request over")

    def _finish(self, fate: Fate, reason: str, message: str) -> None:
        self.over = self.over or AttemptOver(fate, Unavailable(reason, f"{message}; try again", retry_after_s=1.0))
        self._wake()


def _timing(message: types_pb2.EngineTiming) -> Timing:
    return Timing(
        queue_ns=message.queue_ns,
        prefill_ns=message.prefill_ns,
        decode_ns=message.decode_ns,
        num_prefill_steps=message.num_prefill_steps,
        num_preemptions=message.num_preemptions,
        num_recomputed_tokens=message.num_recomputed_tokens,
        peak_pages=message.peak_pages,
    )
