"""One request's stay at one engine: what was sent there, what it may send back, and how it is given up."""

from __future__ import annotations

from octavo.v1 import engine_pb2

from octavo_router.attempt import Attempt, AttemptOver
from octavo_router.fleet import Engine
from octavo_router.journal import Timing
from octavo_router.load import Placement


class Stay:
    """Begins when the request is sent. Everything is harmless after the engine is lost."""

    def __init__(self, engine: Engine, message: engine_pb2.LinkRequest, attempt: Attempt) -> None:
        """Send the request.

        Raises:
            Unavailable: the engine cannot be reached.
        """
        self.engine = engine
        self.placement: Placement | None = None
        self._attempt = attempt
        self.stream_id = engine.link.submit(message, attempt)

    @property
    def over(self) -> AttemptOver | None:
        """Why the stay is over before the request is; None while it is not."""
        return self._attempt.over

    @property
    def timing(self) -> Timing:
        """Where the time at the engine went."""
        return self._attempt.timing

    def extend_credit(self, max_output_tokens: int) -> None:
        """Let each choice run this far in all."""
        self.engine.link.credit(self.stream_id, self._attempt, max_output_tokens)

    def note_prefilled(self) -> None:
        """The prompt is computed: it weighs on the engine's queue no longer."""
        if self.placement is not None:
            self.engine.load.prefilled(self.placement)

    def cancel_choice(self, choice: int) -> None:
        """Give up a choice that ended here: the engine would compute it on while its siblings run."""
        if self._attempt.is_choice_open(choice):
            self.engine.link.cancel_choice(self.stream_id, self._attempt, choice)

    def give_up(self) -> None:
        """Leave: the engine frees what it holds for the request."""
        self.engine.link.cancel(self.stream_id, self._attempt)
        if self.placement is not None:
            self.engine.load.ended(self.placement)
