"""Every limit on what a client may ask, checked before anything is tokenized or allocated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from octavo.errors import InvalidRequest
from octavo.sampling_rules import INVALID_SAMPLING, check_sampling
from octavo.v1 import inference_pb2, types_pb2

MAX_STOPS: Final = 8
MAX_STOP_BYTES: Final = 128
MAX_MESSAGES: Final = 4096
MAX_KIND_LEN: Final = 128
INVALID_RESUME: Final = "invalid_resume"
ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
# Unspecified: the choice goes on. The others are those that a client is told.
_RESUMABLE: Final = frozenset(
    {
        types_pb2.FINISH_REASON_UNSPECIFIED,
        types_pb2.FINISH_REASON_STOP,
        types_pb2.FINISH_REASON_LENGTH,
        types_pb2.FINISH_REASON_CANCELLED,
        types_pb2.FINISH_REASON_DEADLINE,
    }
)
_VISIBLE = re.compile(r"[\x21-\x7e]{1,128}")


def check_name(value: str, key: str) -> str:
    """Return a request id or tenant if it is fit for logs, traces and metadata.

    Raises:
        InvalidRequest: it is not 1 to 128 visible ASCII characters.
    """
    if not _VISIBLE.fullmatch(value):
        raise InvalidRequest(
            "invalid_metadata", f"{key} must be 1 to 128 visible ASCII characters", field=f"metadata.{key}"
        )
    return value


def check_generate(request: inference_pb2.GenerateRequest, *, max_prompt_bytes: int, vocab_size: int) -> None:
    """Check all of a request that can be checked before its prompt is tokenized.

    Raises:
        InvalidRequest: the first field found wrong.
    """
    check_input(request.input, max_prompt_bytes=max_prompt_bytes)
    check_sampling(request.sampling, vocab_size=vocab_size)
    _check_stops(request.sampling.stop)
    if request.priority not in types_pb2.Priority.values():
        raise InvalidRequest("invalid_priority", f"priority {request.priority} does not exist", field="priority")
    if request.HasField("resume"):
        check_resume(request.resume, request.sampling, vocab_size=vocab_size)


def check_resume(resume: inference_pb2.Resume, sampling: types_pb2.SamplingParams, *, vocab_size: int) -> None:
    """Check output that a client says it has.

    Raises:
        InvalidRequest: it is none that this request can have.
    """
    num_choices = sampling.n or 1
    if len(resume.choices) != num_choices:
        problem = f"resume.choices has {len(resume.choices)} entries for {num_choices} choices"
        raise InvalidRequest(INVALID_RESUME, problem, field="resume.choices")
    for index, choice in enumerate(resume.choices):
        _check_resumed_choice(choice, sampling.max_tokens, f"resume.choices[{index}]", vocab_size)
    if all(choice.finish_reason for choice in resume.choices):
        raise InvalidRequest(INVALID_RESUME, "every choice has finished: there is nothing to resume", field="resume")
    if any(choice.token_ids for choice in resume.choices):
        if not 1 <= len(resume.engine_kind) <= MAX_KIND_LEN:
            problem = f"must be an Origin.engine_kind, of 1 to {MAX_KIND_LEN} characters"
            raise InvalidRequest(INVALID_RESUME, problem, field="resume.engine_kind")
        if not sampling.HasField("seed"):
            raise InvalidRequest(INVALID_RESUME, "must be set to Accepted.seed", field="sampling.seed")


def check_input(message: inference_pb2.Input, *, max_prompt_bytes: int) -> None:
    """Check what to generate from, but for its token ids.

    Raises:
        InvalidRequest: nothing is set, or something is too large or impossible.
    """
    kind = message.WhichOneof("kind")
    if kind == "text":
        _check_bytes(len(message.text.encode()), max_prompt_bytes, "input.text")
    elif kind == "chat":
        _check_chat(message.chat, max_prompt_bytes)
    elif kind == "tokens":
        _check_tokens(message.tokens, max_prompt_bytes)
    else:
        raise InvalidRequest("missing_input", "set input.text, input.chat or input.tokens", field="input")


def check_token_ids(token_ids: Sequence[int], *, vocab_size: int) -> None:
    """Check the token ids of a prompt.

    Raises:
        InvalidRequest: the model has not all of them.
    """
    largest = max(token_ids)
    if largest >= vocab_size:
        raise InvalidRequest(
            "invalid_token_id",
            f"token id {largest} is not below the vocabulary size {vocab_size}",
            field="input.tokens.ids",
        )


def check_prompt_len(num_tokens: int, *, max_model_len: int) -> None:
    """Check a prompt's length in tokens.

    Raises:
        InvalidRequest: it is empty, or leaves no room for output.
    """
    if num_tokens == 0:
        raise InvalidRequest("empty_prompt", "the prompt has no tokens", field="input")
    if num_tokens >= max_model_len:
        raise InvalidRequest(
            "prompt_too_long",
            f"the prompt has {num_tokens} tokens; the model takes {max_model_len - 1} and one of output",
            field="input",
            metadata={"num_tokens": str(num_tokens), "max_model_len": str(max_model_len)},
        )


def _check_chat(chat: inference_pb2.ChatInput, max_prompt_bytes: int) -> None:
    field = "input.chat.messages"
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        raise InvalidRequest(
            "invalid_chat", f"the chat has {len(chat.messages)} messages; send 1 to {MAX_MESSAGES}", field=field
        )
    for index, message in enumerate(chat.messages):
        if message.role not in ROLES:
            raise InvalidRequest(
                "invalid_chat", f"a role must be one of {', '.join(sorted(ROLES))}", field=f"{field}[{index}].role"
            )
    _check_bytes(sum(len(message.content.encode()) for message in chat.messages), max_prompt_bytes, field)


def _check_tokens(tokens: inference_pb2.TokenInput, max_prompt_bytes: int) -> None:
    field = "input.tokens.ids"
    if not tokens.ids:
        raise InvalidRequest("empty_prompt", "the prompt has no tokens", field=field)
    _check_bytes(4 * len(tokens.ids), 4 * max_prompt_bytes, field)


def _check_resumed_choice(choice: inference_pb2.ResumedChoice, max_tokens: int, field: str, vocab_size: int) -> None:
    if max_tokens and len(choice.token_ids) > max_tokens:
        problem = f"{field} has {len(choice.token_ids)} tokens; sampling.max_tokens is {max_tokens}"
        raise InvalidRequest(INVALID_RESUME, problem, field=f"{field}.token_ids")
    if choice.token_ids and (largest := max(choice.token_ids)) >= vocab_size:
        problem = f"token id {largest} is not below the vocabulary size {vocab_size}"
        raise InvalidRequest("invalid_token_id", problem, field=f"{field}.token_ids")
    if choice.text_bytes and not choice.token_ids:
        raise InvalidRequest(INVALID_RESUME, "there is no text without tokens", field=f"{field}.text_bytes")
    if choice.finish_reason not in _RESUMABLE:
        problem = f"finish reason {choice.finish_reason} does not end a choice for a client"
        raise InvalidRequest(INVALID_RESUME, problem, field=f"{field}.finish_reason")


def _check_bytes(size: int, limit: int, field: str) -> None:
    if size > limit:
        raise InvalidRequest("prompt_too_large", f"{field} has {size} bytes; the limit is {limit}", field=field)


def _check_stops(stops: Sequence[str]) -> None:
    field = "sampling.stop"
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            INVALID_SAMPLING, f"{field} has {len(stops)} strings; the limit is {MAX_STOPS}", field=field
        )
    if not all(1 <= len(stop.encode()) <= MAX_STOP_BYTES for stop in stops):
        raise InvalidRequest(INVALID_SAMPLING, f"{field} must be strings of 1 to {MAX_STOP_BYTES} bytes", field=field)
