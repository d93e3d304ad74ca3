"""Translates between the SDK's values and the messages of octavo.v1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from octavo.v1 import admin_pb2, inference_pb2, types_pb2

from octavo_client.values import (
    Accepted,
    Candidate,
    Chunk,
    Engine,
    Event,
    Explanation,
    Finished,
    FinishReason,
    Message,
    Model,
    Priority,
    Sampling,
    Timing,
    Usage,
)

Prompt = str | Sequence[int] | Sequence[Message]
"""Plain text, ready token ids, or a chat."""

_PRIORITIES: Final = {
    Priority.INTERACTIVE: types_pb2.PRIORITY_INTERACTIVE,
    Priority.BATCH: types_pb2.PRIORITY_BATCH,
}
_REASONS: Final = {
    types_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    types_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    types_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
    types_pb2.FINISH_REASON_DEADLINE: FinishReason.DEADLINE,
    types_pb2.FINISH_REASON_ERROR: FinishReason.ERROR,
    types_pb2.FINISH_REASON_HANDOFF: FinishReason.HANDOFF,
}
_NS: Final = 1e-9


def input_message(prompt: Prompt) -> inference_pb2.Input:
    """Return the input for a prompt.

    Raises:
        TypeError: a sequence of something else, or of both kinds. An empty one is taken as no token ids.
    """
    if isinstance(prompt, str):
        return inference_pb2.Input(text=prompt)
    messages = [item for item in prompt if isinstance(item, Message)]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(messages) + len(ids) != len(prompt) or (messages and ids):
        raise TypeError("a prompt is a str, a sequence of token ids or a sequence of Message")
    if messages:
        return inference_pb2.Input(chat=chat_message(messages))
    return inference_pb2.Input(tokens=inference_pb2.TokenInput(ids=ids))


def chat_message(messages: Sequence[Message]) -> inference_pb2.ChatInput:
    """Return a chat as input."""
    return inference_pb2.ChatInput(
        messages=[types_pb2.ChatMessage(role=message.role, content=message.content) for message in messages]
    )


def sampling_message(sampling: Sampling) -> types_pb2.SamplingParams:
    """Return the sampling parameters; what is None stays absent."""
    return types_pb2.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        n=sampling.n,
    )


def priority_value(priority: Priority) -> types_pb2.Priority.ValueType:
    """Return the enum's number."""
    return _PRIORITIES[priority]


def event_of(response: inference_pb2.GenerateResponse) -> Event | None:
    """Return the event of one message; None for a kind that a newer router may send."""
    match response.WhichOneof("event"):
        case "accepted":
            return _accepted(response.accepted)
        case "chunk":
            return _chunk(response.chunk)
        case "finished":
            return _finished(response.finished)
        case _:
            return None


def model_of(message: types_pb2.ModelInfo) -> Model:
    """Return a model's facts."""
    return Model(
        name=message.name,
        revision=message.revision,
        tokenizer_revision=message.tokenizer_revision,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        page_size=message.page_size,
        eos_token_ids=tuple(message.eos_token_ids),
    )


def explanation_of(message: inference_pb2.ExplainResponse) -> Explanation:
    """Return the answer of Explain."""
    return Explanation(
        prompt_tokens=message.prompt_tokens,
        prompt_pages=message.prompt_pages,
        candidates=tuple(_candidate(cost) for cost in message.candidates),
    )


def engine_of(message: admin_pb2.EngineStatus) -> Engine:
    """Return one line of ListEngines."""
    return Engine(
        engine_id=message.engine.engine_id,
        address=message.address,
        state=message.state,
        model=message.engine.model.name,
        backend=message.engine.backend,
        device=message.engine.device,
        dtype=message.engine.dtype,
        numerics=message.engine.numerics,
        num_running=message.load.num_running,
        num_waiting=message.load.num_waiting,
        num_streams=message.num_streams,
        num_pages=message.engine.num_pages,
        pages_in_use=message.load.pages_in_use,
        pages_cached=message.load.pages_cached,
        num_resident_pages=message.num_resident_pages,
        age_s=message.age_ms / 1000,
        is_warming=message.load.warming,
    )


def _accepted(message: inference_pb2.Accepted) -> Accepted:
    return Accepted(
        request_id=message.request_id,
        trace_id=message.trace_id,
        engine_id=message.engine_id,
        prompt_tokens=message.prompt_tokens,
        matched_pages=message.matched_pages,
        reason=message.reason,
        seed=message.seed,
    )


def _chunk(message: inference_pb2.OutputChunk) -> Chunk:
    return Chunk(
        index=message.index,
        text=message.text,
        position=message.position,
        num_tokens=message.num_tokens,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
    )


def _finished(message: inference_pb2.Finished) -> Finished:
    return Finished(
        index=message.index,
        reason=_REASONS.get(message.reason, FinishReason.UNKNOWN),
        stopped_by=message.stopped_by,
        usage=Usage(
            prompt_tokens=message.usage.prompt_tokens,
            cached_tokens=message.usage.cached_tokens,
            output_tokens=message.usage.output_tokens,
        ),
        timing=_timing(message.timing),
        engine_id=message.engine_id,
        num_moves=message.num_moves,
    )


def _timing(message: types_pb2.EngineTiming) -> Timing:
    return Timing(
        queue_s=message.queue_ns * _NS,
        prefill_s=message.prefill_ns * _NS,
        decode_s=message.decode_ns * _NS,
        num_prefill_steps=message.num_prefill_steps,
        num_preemptions=message.num_preemptions,
        num_recomputed_tokens=message.num_recomputed_tokens,
        peak_pages=message.peak_pages,
    )


def _candidate(message: inference_pb2.EngineCost) -> Candidate:
    return Candidate(
        engine_id=message.engine_id,
        matched_pages=message.matched_pages,
        waiting_tokens=message.waiting_tokens,
        uncached_tokens=message.uncached_tokens,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        pool_usage=message.pool_usage,
        num_running=message.num_running,
        prefill_s=message.prefill_s,
        pool_s=message.pool_s,
        decode_s=message.decode_s,
        cost_s=message.cost_s,
        recent_s=message.recent_s,
    )
