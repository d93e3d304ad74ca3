"""Turns a router's Submit into the core's: every limit of a request stands here, and every default gets its value."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final

from octavo.errors import InvalidRequest
from octavo.page_hash import root_hash, salted_root, token_bytes
from octavo.sampling_rules import check_sampling
from octavo.v1 import engine_pb2, types_pb2

from octavo_engine import messages, sequence

MAX_REQUEST_ID_LEN: Final = 128
MAX_CACHE_SALT_BYTES: Final = 64
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000

_VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)
_NS_PER_MS = 1_000_000
_PRIORITIES: Final = {
    types_pb2.PRIORITY_UNSPECIFIED: sequence.Priority.INTERACTIVE,
    types_pb2.PRIORITY_INTERACTIVE: sequence.Priority.INTERACTIVE,
    types_pb2.PRIORITY_BATCH: sequence.Priority.BATCH,
}


class Validator:
    """Checks requests against the limits of a loaded model.

    Args:
        facts: the core's facts about the model and its pool.
    """

    def __init__(self, facts: messages.Ready) -> None:
        self._facts = facts
        self.page_size = facts.page_size
        self.page_hash_root = root_hash(
            model_revision=facts.model_revision,
            tokenizer_revision=facts.tokenizer_revision,
            page_size=facts.page_size,
        )

    def command(self, submit: engine_pb2.Submit, *, key: int, arrival_ns: int) -> messages.Submit:
        """Return the core's form of a request.

        Args:
            submit: the request as it came.
            key: its key in this process.
            arrival_ns: monotonic time of its arrival.

        Raises:
            InvalidRequest: a field breaks its limit.
        """
        facts, sampling = self._facts, submit.sampling
        _check(
            1 <= len(submit.request_id) <= MAX_REQUEST_ID_LEN and _VISIBLE.issuperset(submit.request_id),
            "invalid_request_id",
            "request_id",
            f"must be 1 to {MAX_REQUEST_ID_LEN} visible ASCII characters",
        )
        _check(
            len(submit.cache_salt) <= MAX_CACHE_SALT_BYTES,
            "invalid_cache_salt",
            "cache_salt",
            f"has {len(submit.cache_salt)} bytes, at most {MAX_CACHE_SALT_BYTES} are allowed",
        )
        _check(
            submit.timeout_ms <= MAX_TIMEOUT_MS, "invalid_timeout", "timeout_ms", f"must be at most {MAX_TIMEOUT_MS}"
        )
        _check(submit.priority in _PRIORITIES, "invalid_priority", "priority", "is not a known class of service")
        check_sampling(sampling, vocab_size=facts.vocab_size)
        _check(sampling.HasField("seed"), "missing_seed", "sampling.seed", "must be set: the router draws it")
        _check(len(submit.prompt_token_ids) > 0, "empty_prompt", "prompt_token_ids", "must hold at least one token id")
        self._check_ids(submit.prompt_token_ids, "prompt_token_ids")
        n = sampling.n or 1
        self._check_committed(submit, n)
        room = self._check_length(submit)
        max_tokens = min(sampling.max_tokens or room, room)
        stop_token_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_token_ids.update(facts.eos_token_ids)
        return messages.Submit(
            key=key,
            prompt=token_bytes(submit.prompt_token_ids),
            arrival_ns=arrival_ns,
            deadline_ns=arrival_ns + submit.timeout_ms * _NS_PER_MS if submit.timeout_ms else None,
            page_hash_root=salted_root(self.page_hash_root, submit.cache_salt),
            temperature=sampling.temperature if sampling.HasField("temperature") else 1.0,
            top_k=0 if sampling.top_k >= facts.vocab_size else sampling.top_k,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            min_p=sampling.min_p,
            seed=sampling.seed,
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            stop_token_ids=sorted(stop_token_ids),
            n=n,
            priority=int(_PRIORITIES[submit.priority]),
            committed=[token_bytes(output.token_ids) for output in submit.committed],
            finished_choices=[choice for choice, output in enumerate(submit.committed) if output.finished],
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            expected_cached=submit.expected_cached_tokens,
        )

    def _check_ids(self, token_ids: Sequence[int], field: str) -> None:
        vocab_size = self._facts.vocab_size
        _check(
            not token_ids or max(token_ids) < vocab_size,
            "invalid_token_id",
            field,
            f"holds an id that is not below the model's vocabulary size {vocab_size}",
        )

    def _check_committed(self, submit: engine_pb2.Submit, n: int) -> None:
        if not submit.committed:
            return
        _check(
            len(submit.committed) == n, "invalid_committed", "committed", f"must have one entry for each of {n} choices"
        )
        _check(
            not all(output.finished for output in submit.committed),
            "nothing_to_resume",
            "committed",
            "says that every choice has ended",
        )
        for index, output in enumerate(submit.committed):
            self._check_ids(output.token_ids, f"committed[{index}].token_ids")

    def _check_length(self, submit: engine_pb2.Submit) -> int:
        """Return the output tokens that the context and the pool leave to the prompt."""
        facts = self._facts
        num_prompt = len(submit.prompt_token_ids)
        _check(
            num_prompt + 1 <= facts.max_model_len,
            "prompt_too_long",
            "prompt_token_ids",
            f"has {num_prompt} tokens; with one output token the model's limit is {facts.max_model_len}",
        )
        pool_tokens = facts.num_pages * facts.page_size
        _check(
            num_prompt + 1 <= pool_tokens,
            "prompt_exceeds_pool",
            "prompt_token_ids",
            f"has {num_prompt} tokens; with one output token this engine's pool holds {pool_tokens}",
        )
        room = min(facts.max_model_len, pool_tokens) - num_prompt
        for index, output in enumerate(submit.committed):
            _check(
                len(output.token_ids) <= room,
                "committed_too_long",
                f"committed[{index}].token_ids",
                f"has {len(output.token_ids)} tokens; the prompt leaves room for {room}",
            )
        return room


def _check(holds: bool, reason: str, field: str, message: str) -> None:  # noqa: FBT001 - the first word is the condition
    if not holds:
        raise InvalidRequest(reason, f"{field} {message}", field=field)
