"""Turns a gateway's GenerateRequest into a Submit, and refuses by name what engines here do not do.

Stop strings, detokenizing and special tokens are the gateway's business, as they are a router's. Absent numbers arrive as
0 and mean "off".
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from octavo.attributes import Metadata
from octavo.errors import InvalidRequest
from octavo.v1 import engine_pb2, types_pb2

SEED_MASK: Final = (1 << 64) - 1
UNSUPPORTED: Final = "unsupported_parameter"
"""Reason of the error for a parameter that no engine here heeds; ignoring it would give other tokens than asked for."""


def submit_of(request: Any, headers: Mapping[str, str]) -> engine_pb2.Submit:
    """Return the Submit that a GenerateRequest stands for.

    Args:
        request: vllm.grpc.engine.GenerateRequest.
        headers: the call's metadata.

    Raises:
        InvalidRequest: it asks for something that engines here do not do. Limits of values are the validator's.
    """
    for holds, field, problem in _rules(request):
        if not holds:
            raise InvalidRequest(UNSUPPORTED, f"{field} {problem}", field=field)
    return engine_pb2.Submit(
        request_id=request.request_id or headers.get(Metadata.REQUEST_ID) or uuid.uuid4().hex,
        prompt_token_ids=request.tokenized.input_ids,
        sampling=_sampling(request.sampling_params),
        traceparent=headers.get(Metadata.TRACEPARENT, ""),
    )


def _sampling(params: Any) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_k=params.top_k,
        top_p=params.top_p or 1.0,
        min_p=params.min_p,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty or 1.0,
        seed=params.seed & SEED_MASK if params.HasField("seed") else secrets.randbits(64),
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        n=params.n,
    )


def _rules(request: Any) -> Iterator[tuple[bool, str, str]]:
    """Yield (holds, field, what is wrong if not)."""
    params = request.sampling_params
    yield request.WhichOneof("input") == "tokenized", "tokenized", "must be set: an engine takes token ids, not text"
    for field in ("mm_inputs", "media_refs"):
        yield not request.HasField(field), field, "is set; this engine takes text models' token ids only"
    yield not request.extra_mm_inputs, "extra_mm_inputs", "is set; this engine takes text models' token ids only"
    for field in ("kv_transfer_params", "kv_transfer_params_json"):
        yield not request.HasField(field), field, "is set; this engine does not exchange pages with others"
    yield request.data_parallel_rank == 0, "data_parallel_rank", "must be 0: this engine has one rank"
    yield (
        not params.HasField("max_tokens") or params.max_tokens > 0,
        "sampling_params.max_tokens",
        "is 0; leave it out for as many as the model's context allows",
    )
    yield not params.logit_bias, "sampling_params.logit_bias", "is not supported by this engine"
    yield (
        not params.HasField("logprobs") or params.logprobs in {0, 1},
        "sampling_params.logprobs",
        f"is {params.logprobs}; this engine gives the log-probability of the token chosen, not of others: ask for 1",
    )
    for field in ("prompt_logprobs", "truncate_prompt_tokens"):
        yield not params.HasField(field), f"sampling_params.{field}", "is not supported by this engine"
    constraint = params.WhichOneof("constraint")
    yield constraint is None, f"sampling_params.{constraint}", "is not supported: this engine does not constrain output"
