"""Turns what happens to a request into messages of the public service."""

from __future__ import annotations

from octavo.v1 import inference_pb2, types_pb2

from octavo_router.dispatch import Dispatch
from octavo_router.journal import Timing
from octavo_router.output import ChoiceEnded, Chunk
from octavo_router.policy import Cost
from octavo_router.resume import ENDINGS
from octavo_router.work import Placed, Work

_REASONS = {ending: reason for reason, ending in ENDINGS.items()}


class Responses:
    """The messages of one stream, in the order of its dispatch's events."""

    def __init__(self, request: inference_pb2.GenerateRequest, work: Work, dispatch: Dispatch, trace_id: str) -> None:
        self._request = request
        self._work = work
        self._dispatch = dispatch
        self._trace_id = trace_id
        choices = () if work.resumed is None else work.resumed.choices
        self._num_running = work.sampling.n - sum(choice.ending is not None for choice in choices)
        self._has_origin = False

    def of(self, event: Placed | Chunk | ChoiceEnded) -> inference_pb2.GenerateResponse:
        """Return the message of the next event."""
        if isinstance(event, Chunk):
            return self._chunk(event)
        if isinstance(event, ChoiceEnded):
            return inference_pb2.GenerateResponse(finished=self._finished(event))
        return inference_pb2.GenerateResponse(
            accepted=inference_pb2.Accepted(
                request_id=self._work.request_id,
                trace_id=self._trace_id,
                engine_id=event.engine_id,
                prompt_tokens=len(self._work.prompt),
                matched_pages=event.matched_pages,
                reason=event.reason,
                seed=self._work.sampling.seed,
                max_tokens=self._work.sampling.max_tokens,
            )
        )

    def _chunk(self, chunk: Chunk) -> inference_pb2.GenerateResponse:
        # Filled in place: making a message of a message copies it, and this one is made for every token.
        response = inference_pb2.GenerateResponse()
        output = response.chunk
        output.index = chunk.index
        output.text = chunk.text
        output.position = chunk.position
        output.num_tokens = len(chunk.token_ids)
        if self._request.return_token_ids:
            output.token_ids.extend(chunk.token_ids)
        if self._request.logprobs:
            output.logprobs.extend(chunk.logprobs)
        if not self._has_origin:
            output.origin.CopyFrom(self._origin())
        return response

    def _origin(self) -> inference_pb2.Origin:
        self._has_origin = True
        # Known by now, and for good: output binds the request to the kind of its engine.
        kind = self._dispatch.engine_kind
        return inference_pb2.Origin(engine_kind=kind, cached_tokens=self._dispatch.journal.cached_tokens)

    def _finished(self, ended: ChoiceEnded) -> inference_pb2.Finished:
        self._num_running -= 1
        journal = self._dispatch.journal
        return inference_pb2.Finished(
            index=ended.index,
            reason=_REASONS[ended.ending],
            stopped_by=ended.stopped_by,
            usage=types_pb2.Usage(
                prompt_tokens=len(self._work.prompt),
                cached_tokens=journal.cached_tokens,
                output_tokens=journal.num_output_tokens,
            ),
            timing=_timing(self._dispatch.timing) if self._num_running == 0 else None,
            engine_id=self._dispatch.engine_id,
            num_moves=journal.num_moves,
        )


def engine_cost(cost: Cost) -> inference_pb2.EngineCost:
    """Return the terms of one engine's cost for Explain."""
    return inference_pb2.EngineCost(
        engine_id=cost.engine_id,
        matched_pages=cost.matched_pages,
        waiting_tokens=cost.waiting_tokens,
        uncached_tokens=cost.uncached_tokens,
        prefill_tokens_per_s=cost.prefill_tokens_per_s,
        pool_usage=cost.pool_usage,
        num_running=cost.num_running,
        prefill_s=cost.prefill_s,
        pool_s=cost.pool_s,
        decode_s=cost.decode_s,
        cost_s=cost.cost_s,
        recent_s=cost.recent_s,
    )


def _timing(timing: Timing) -> types_pb2.EngineTiming:
    return types_pb2.EngineTiming(
        queue_ns=timing.queue_ns,
        prefill_ns=timing.prefill_ns,
        decode_ns=timing.decode_ns,
        num_prefill_steps=timing.num_prefill_steps,
        num_preemptions=timing.num_preemptions,
        num_recomputed_tokens=timing.num_recomputed_tokens,
        peak_pages=timing.peak_pages,
    )
