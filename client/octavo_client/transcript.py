"""What a client has of one generation: enough to go on with it at another router. Sans-IO."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

from octavo.errors import InternalError
from octavo.v1 import inference_pb2, types_pb2

from octavo_client.translation import event_of
from octavo_client.values import Chunk, Event


@dataclass(slots=True)
class _Choice:
    token_ids: array[int] = field(default_factory=lambda: array("I"))
    num_tokens: int = 0
    text_bytes: int = 0
    finish_reason: types_pb2.FinishReason.ValueType = types_pb2.FINISH_REASON_UNSPECIFIED


class Transcript:
    """Takes the messages of one stream after the other; each token and each end becomes an event exactly once."""

    def __init__(self, request: inference_pb2.GenerateRequest, *, wants_token_ids: bool) -> None:
        """Begin with nothing.

        Args:
            request: what was asked for.
            wants_token_ids: whether events shall have the token ids, which a resume needs in any case.
        """
        self._request = request
        self._wants_token_ids = wants_token_ids
        self._choices = [_Choice() for _ in range(max(1, request.sampling.n))]
        self._accepted: inference_pb2.Accepted | None = None
        self._origin: inference_pb2.Origin | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether a router has taken the request."""
        return self._accepted is not None

    @property
    def is_finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish_reason for choice in self._choices)

    @property
    def can_resume(self) -> bool:
        """Whether another router could go on: one that tells no origin or no token ids leaves nothing to go on from."""
        is_whole = all(len(choice.token_ids) == choice.num_tokens for choice in self._choices)
        return is_whole and (self._origin is not None or not any(choice.num_tokens for choice in self._choices))

    def take(self, response: inference_pb2.GenerateResponse) -> Event | None:
        """Take the next message; return its event, None for what a user has seen or need not see.

        Raises:
            InternalError: the router sends what does not follow.
        """
        event = event_of(response)
        match response.WhichOneof("event"):
            case "accepted":
                return None if self._note_accepted(response.accepted) else event
            case "chunk":
                self._note_chunk(response.chunk)
                if isinstance(event, Chunk) and not self._wants_token_ids:
                    return replace(event, token_ids=())
            case "finished":
                self._note_end(response.finished)
            case _:
                pass
        return event

    def next_request(self) -> inference_pb2.GenerateRequest:
        """Return what to ask another router for: the rest."""
        request = inference_pb2.GenerateRequest()
        request.CopyFrom(self._request)
        if self._accepted is None:
            return request
        if not request.sampling.HasField("seed"):
            request.sampling.seed = self._accepted.seed
        request.sampling.max_tokens = self._accepted.max_tokens or request.sampling.max_tokens
        if self._origin is not None:
            request.resume.engine_kind = self._origin.engine_kind
            request.resume.cached_tokens = self._origin.cached_tokens
            for choice in self._choices:
                request.resume.choices.add(
                    token_ids=choice.token_ids, text_bytes=choice.text_bytes, finish_reason=choice.finish_reason
                )
        return request

    def _note_accepted(self, accepted: inference_pb2.Accepted) -> bool:
        """Return whether it was accepted before."""
        was_accepted = self._accepted is not None
        self._accepted = self._accepted or accepted
        return was_accepted

    def _note_chunk(self, chunk: inference_pb2.OutputChunk) -> None:
        choice = self._open_choice(chunk.index)
        if chunk.position != choice.num_tokens:
            raise InternalError("stream_out_of_order", "the router sent an output position that is not the next one")
        choice.token_ids.extend(chunk.token_ids)
        choice.num_tokens += chunk.num_tokens
        choice.text_bytes += len(chunk.text.encode())
        if self._origin is None and chunk.HasField("origin"):
            self._origin = chunk.origin

    def _note_end(self, finished: inference_pb2.Finished) -> None:
        self._open_choice(finished.index).finish_reason = finished.reason

    def _open_choice(self, index: int) -> _Choice:
        if index >= len(self._choices):
            raise InternalError("unknown_choice", f"the router sent a choice {index} that was not asked for")
        choice = self._choices[index]
        if choice.finish_reason:
            raise InternalError("stream_out_of_order", "the router sent output of a choice that had finished")
        return choice
