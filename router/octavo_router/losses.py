"""Counts the engines that one request has lost, and says when it may not cost another one. Sans-IO.

A request may be the very cause: its prompt runs into a bug, its step kills the core. Resumed, it comes to the same step at
once and kills the next engine too. So a request whose second engine in a row fails before it gave a single token is not
tried at a third. A request that went on between its losses was merely unlucky, up to a limit. Silence accuses nobody: the
process that answers for an engine is not the one that computes. Nor does a stream that the engine ended in order.
"""

from __future__ import annotations

from octavo.errors import InternalError, OctavoError

from octavo_router.attempt import ENGINE_LEFT, ENGINE_SILENT, AttemptOver, Fate

_MAX_DEATHS_IN_PLACE = 1  # the first may have been an accident
_BLAMELESS = frozenset({ENGINE_SILENT, ENGINE_LEFT})


class Losses:
    """Told when an attempt is over. `max_losses` engines may be lost in all."""

    def __init__(self, max_losses: int) -> None:
        self._max_losses = max_losses
        self._num_losses = 0
        self._num_deaths_in_place = 0
        self._died_at = -1  # output tokens at the last death

    def note(self, over: AttemptOver, num_output_tokens: int) -> OctavoError | None:
        """Take an attempt that is over, and the output so far; return the error that ends the request, if it must end.

        A handover is orderly and a refusal costs nothing, however many there are.
        """
        if over.fate not in {Fate.LOST, Fate.FAILED}:
            return None
        self._num_losses += 1
        if over.error.reason not in _BLAMELESS:
            is_in_place = num_output_tokens <= self._died_at
            self._num_deaths_in_place = self._num_deaths_in_place + 1 if is_in_place else 0
            self._died_at = num_output_tokens
        if self._num_deaths_in_place >= _MAX_DEATHS_IN_PLACE:
            return InternalError(
                "request_quarantined",
                "two engines in a row failed at the same place of this request; it is not tried at a third",
            )
        return over.error if self._num_losses > self._max_losses else None
