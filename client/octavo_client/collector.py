"""Puts the events of one generation together into a whole output."""

from __future__ import annotations

from octavo.errors import InternalError

from octavo_client.values import Accepted, Choice, Chunk, Completion, Event, Finished


class Collector:
    """Takes events in the order in which they come."""

    def __init__(self, num_choices: int = 1) -> None:
        self._chunks: list[list[Chunk]] = [[] for _ in range(num_choices)]
        self._ends: dict[int, Finished] = {}
        self._accepted: Accepted | None = None
        self._last: Finished | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case Accepted():
                self._accepted = event
            case Chunk(index=index) if index < len(self._chunks):
                self._chunks[index].append(event)
            case Finished(index=index) if index < len(self._chunks):
                self._ends[index] = self._last = event
            case _:
                raise InternalError("unknown_choice", f"the router sent a choice {event.index} that was not asked for")

    def completion(self, *, ttft_s: float | None, duration_s: float) -> Completion:
        """Return the whole output.

        Raises:
            InternalError: an event is missing that every complete stream has.
        """
        if self._accepted is None or self._last is None or len(self._ends) != len(self._chunks):
            raise InternalError("stream_incomplete", "the router's stream lacks an event that it must have")
        return Completion(
            accepted=self._accepted,
            choices=tuple(self._choice(index) for index in range(len(self._chunks))),
            usage=self._last.usage,
            timing=self._last.timing,
            engine_id=self._last.engine_id,
            num_moves=self._last.num_moves,
            ttft_s=ttft_s,
            duration_s=duration_s,
        )

    def _choice(self, index: int) -> Choice:
        chunks, end = self._chunks[index], self._ends[index]
        return Choice(
            text="".join(chunk.text for chunk in chunks),
            token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
            logprobs=tuple(value for chunk in chunks for value in chunk.logprobs),
            finish_reason=end.reason,
            stopped_by=end.stopped_by,
        )
