"""Every limit on what a client may ask, checked before anything is tokenized or allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from octavo.errors import InvalidRequest
from octavo.v1 import inference_pb2, types_pb2

MAX_CHOICES: Final = 8
MAX_STOPS: Final = 8
MAX_STOP_BYTES: Final = 128
MAX_STOP_TOKEN_IDS: Final = 64
MAX_MESSAGES: Final = 4096
MAX_TEMPERATURE: Final = 100.0
ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
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
    check_input(request.input, max_prompt_bytes=max_prompt_bytes, vocab_size=vocab_size)
    for ok, field, problem in _sampling_rules(request.sampling, vocab_size):
        if not ok:
            raise InvalidRequest("invalid_sampling", f"{field} {problem}", field=field)
    if request.priority not in types_pb2.Priority.values():
        raise InvalidRequest("invalid_priority", f"priority {request.priority} does not exist", field="priority")


def check_input(message: inference_pb2.Input, *, max_prompt_bytes: int, vocab_size: int) -> None:
    """Check what to generate from.

    Raises:
        InvalidRequest: nothing is set, or something is too large or impossible.
    """
    kind = message.WhichOneof("kind")
    if kind == "text":
        _check_bytes(len(message.text.encode()), max_prompt_bytes, "input.text")
    elif kind == "chat":
        _check_chat(message.chat, max_prompt_bytes)
    elif kind == "tokens":
        _check_tokens(message.tokens, max_prompt_bytes, vocab_size)
    else:
        raise InvalidRequest("missing_input", "set input.text, input.chat or input.tokens", field="input")


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


def _check_tokens(tokens: inference_pb2.TokenInput, max_prompt_bytes: int, vocab_size: int) -> None:
    field = "input.tokens.ids"
    if not tokens.ids:
        raise InvalidRequest("empty_prompt", "the prompt has no tokens", field=field)
    _check_bytes(4 * len(tokens.ids), 4 * max_prompt_bytes, field)
    largest = max(tokens.ids)
    if largest >= vocab_size:
        raise InvalidRequest(
            "invalid_token_id", f"token id {largest} is not below the vocabulary size {vocab_size}", field=field
        )


def _check_bytes(size: int, limit: int, field: str) -> None:
    if size > limit:
        raise InvalidRequest("prompt_too_large", f"{field} has {size} bytes; the limit is {limit}", field=field)


def _sampling_rules(sampling: types_pb2.SamplingParams, vocab_size: int) -> Iterator[tuple[bool, str, str]]:
    """Yield (holds, field, what is wrong if not)."""
    yield (
        not sampling.HasField("temperature") or _within(sampling.temperature, 0, MAX_TEMPERATURE),
        "sampling.temperature",
        f"must be a number from 0 to {MAX_TEMPERATURE:g}",
    )
    yield (
        not sampling.HasField("top_p") or (_within(sampling.top_p, 0, 1) and sampling.top_p > 0),
        "sampling.top_p",
        "must be a number above 0, at most 1",
    )
    yield _within(sampling.min_p, 0, 1), "sampling.min_p", "must be a number from 0 to 1"
    yield (
        sampling.top_k <= vocab_size,
        "sampling.top_k",
        f"is {sampling.top_k}, above the vocabulary size {vocab_size}",
    )
    yield sampling.n <= MAX_CHOICES, "sampling.n", f"is {sampling.n}; the limit is {MAX_CHOICES}"
    yield (
        not sampling.max_tokens or sampling.min_tokens <= sampling.max_tokens,
        "sampling.min_tokens",
        f"is {sampling.min_tokens}, above max_tokens {sampling.max_tokens}",
    )
    yield (
        len(sampling.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
        "sampling.stop_token_ids",
        f"has {len(sampling.stop_token_ids)} ids; the limit is {MAX_STOP_TOKEN_IDS}",
    )
    yield (
        all(token_id < vocab_size for token_id in sampling.stop_token_ids),
        "sampling.stop_token_ids",
        f"must be below the vocabulary size {vocab_size}",
    )
    yield (
        len(sampling.stop) <= MAX_STOPS,
        "sampling.stop",
        f"has {len(sampling.stop)} strings; the limit is {MAX_STOPS}",
    )
    yield (
        all(1 <= len(stop.encode()) <= MAX_STOP_BYTES for stop in sampling.stop),
        "sampling.stop",
        f"must be strings of 1 to {MAX_STOP_BYTES} bytes",
    )


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high
