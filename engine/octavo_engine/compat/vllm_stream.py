"""One VllmEngine.Generate call: a reader of a single request, that answers as a gateway expects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

from octavo.errors import DeadlineExceeded, InternalError, OctavoError, Unavailable
from octavo.v1 import engine_pb2, types_pb2
from smg_grpc_proto.generated import vllm_engine_pb2

from octavo_engine.compat.page_notes import PageNotes

FINISH_REASONS: Final = {
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
    types_pb2.FINISH_REASON_CANCELLED: "abort",
}
"""Names of the ends that end a choice alone; every other end is the call's status."""


class VllmStream:
    """Collects one request's tokens for a stream that may read slowly.

    Tokens that wait are joined into one chunk for each choice. What can wait is bounded by the request itself:
    max_tokens for each of its choices. A call that does not stream gets each choice whole, with its end.

    Args:
        request: vllm.grpc.engine.GenerateRequest.
    """

    def __init__(self, request: Any) -> None:
        self.number = 0
        self._streams = request.stream
        self._wants_logprobs = request.sampling_params.HasField("logprobs")
        self._own_stops = frozenset(request.sampling_params.stop_token_ids)
        self._num_prompt = len(request.tokenized.input_ids)
        self._notes: PageNotes | None = None
        self._choices: list[_Choice] = []
        self._cached_tokens = 0
        self._ends: list[engine_pb2.ChoiceEnd] = []
        self._changed = asyncio.Event()

    def open(self, notes: PageNotes) -> None:
        """Begin: the request was taken, with as many choices as the notes have."""
        self._notes = notes
        self._choices = [_Choice(index) for index in range(notes.num_choices)]

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        """Take a step's results; other messages do not concern a direct call."""
        if response.WhichOneof("message") != "step" or self._notes is None:
            return
        step = response.step
        for started in step.started:
            self._cached_tokens = started.cached_tokens
        for index, token_id in enumerate(step.token_ids):
            choice = self._choices[step.choices[index] if step.choices else 0]
            choice.token_ids.append(token_id)
            choice.logprobs.append(step.logprobs[index])
            self._notes.add(choice.index, token_id)
        self._ends.extend(step.ends)
        self._changed.set()

    async def responses(self) -> AsyncGenerator[Any]:
        """Yield chunks as they come, and the end of each choice after its last chunk.

        Raises:
            OctavoError: the request ended in a way that is no finish reason.
        """
        num_ended = 0
        while num_ended < len(self._choices):
            await self._changed.wait()
            self._changed.clear()
            ends, self._ends = self._ends, []
            if self._streams:
                for choice in self._choices:
                    if choice.token_ids:
                        yield vllm_engine_pb2.GenerateResponse(chunk=self._chunk(choice))
            for end in ends:
                if end.reason not in FINISH_REASONS:
                    raise _error_of(end)
                yield vllm_engine_pb2.GenerateResponse(complete=self._complete(end))
            num_ended += len(ends)

    def _chunk(self, choice: _Choice) -> Any:
        token_ids, logprobs = choice.take()
        return vllm_engine_pb2.GenerateStreamChunk(
            index=choice.index,
            token_ids=token_ids,
            prompt_tokens=self._num_prompt,
            completion_tokens=len(token_ids),  # of this chunk: gateways add chunks up
            cached_tokens=self._cached_tokens,
            output_logprobs=self._logprobs(token_ids, logprobs),
        )

    def _complete(self, end: engine_pb2.ChoiceEnd) -> Any:
        choice = self._choices[end.choice]
        token_ids, logprobs = choice.take()
        complete = vllm_engine_pb2.GenerateComplete(
            index=choice.index,
            output_ids=token_ids,
            finish_reason=FINISH_REASONS[end.reason],
            prompt_tokens=self._num_prompt,
            completion_tokens=choice.num_taken,
            cached_tokens=self._cached_tokens,
            output_logprobs=self._logprobs(token_ids, logprobs),
        )
        if end.HasField("stop_token_id") and end.stop_token_id in self._own_stops:
            complete.matched_token_id = end.stop_token_id  # the model's own end is no match to speak of
        return complete

    def _logprobs(self, token_ids: list[int], logprobs: list[float]) -> Any:
        if not self._wants_logprobs or not token_ids:
            return None
        return vllm_engine_pb2.OutputLogProbs(token_ids=token_ids, token_logprobs=logprobs)


class _Choice:
    """Tokens of one choice that wait."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.num_taken = 0
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []

    def take(self) -> tuple[list[int], list[float]]:
        """Return what waits."""
        token_ids, logprobs = self.token_ids, self.logprobs
        self.token_ids, self.logprobs = [], []
        self.num_taken += len(token_ids)
        return token_ids, logprobs


def _error_of(end: engine_pb2.ChoiceEnd) -> OctavoError:
    if end.reason == types_pb2.FINISH_REASON_DEADLINE:
        return DeadlineExceeded("deadline", "the request's time ran out")
    if end.reason == types_pb2.FINISH_REASON_HANDOFF:
        return Unavailable("draining", "the engine is draining; use another one", retry_after_s=1.0)
    return InternalError(end.error or "engine_failed", "the engine failed; try another one")
