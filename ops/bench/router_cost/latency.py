"""What the router adds to the time to the first token: the same request straight to the engine, and through the router."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
from octavo.model_directory import resolve_model
from octavo.v1 import engine_pb2, engine_pb2_grpc, inference_pb2, inference_pb2_grpc, types_pb2
from octavo_router.tokenizer import Tokenizer
from processes import engines, router

_WARM_UP: Final = 30
_WORDS: Final = [
    "page",
    "table",
    "engine",
    "router",
    "prefix",
    "token",
    "batch",
    "prefill",
    "decode",
    "step",
    "plan",
    "budget",
    "queue",
    "credit",
    "stream",
    "chunk",
    "sheet",
    "octavo",
]
_SAMPLING: Final = types_pb2.SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


async def added_ms(prompt_len: int, rounds: int, model: str) -> dict[str, float]:
    """Return medians, milliseconds: TTFT straight from the engine, through the router, and what the latter adds.

    The three take turns. Through the router a prompt goes as token ids and as text; no two prompts share a page.
    """
    prompts = _Prompts(Tokenizer(resolve_model(model)), prompt_len)
    times: dict[str, list[float]] = {"direct": [], "tokens": [], "text": []}
    async with (
        engines(1, 0, model) as addresses,
        router(addresses, model) as (_, router_address),
        grpc.aio.insecure_channel(addresses[0]) as engine_channel,
        grpc.aio.insecure_channel(router_address) as router_channel,
    ):
        engine = engine_pb2_grpc.EngineServiceStub(engine_channel)
        inference = inference_pb2_grpc.InferenceServiceStub(router_channel)
        for number in range(_WARM_UP + rounds):
            submit = engine_pb2.Submit(request_id="direct", prompt_token_ids=prompts.ids(), sampling=_SAMPLING)
            direct = engine_pb2.EngineServiceGenerateRequest(submit=submit)
            as_ids = inference_pb2.Input(tokens=inference_pb2.TokenInput(ids=prompts.ids()))
            as_text = inference_pb2.Input(text=prompts.text())
            taken = {
                "direct": await _first_ms(engine.Generate, direct, "tokens"),
                "tokens": await _first_ms(inference.Generate, _routed(as_ids), "chunk"),
                "text": await _first_ms(inference.Generate, _routed(as_text), "chunk"),
            }
            if number >= _WARM_UP:
                for name, value in taken.items():
                    times[name].append(value)
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    return {
        "direct": medians["direct"],
        "added_tokens": medians["tokens"] - medians["direct"],
        "added_text": medians["text"] - medians["direct"],
    }


class _Prompts:
    """New prompts of one length in tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._randomness = random.Random(7)  # noqa: S311  # made-up prompts

    def ids(self) -> list[int]:
        return [self._randomness.randrange(1000, 9000) for _ in range(self._length)]

    def text(self) -> str:
        words = " ".join(self._randomness.choice(_WORDS) for _ in range(self._length))
        encoded = self._tokenizer.encode_text(words)[: self._length]
        detokenizer = self._tokenizer.detokenizer()
        return detokenizer.feed(encoded) + detokenizer.flush()


def _routed(message: inference_pb2.Input) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(input=message, sampling=_SAMPLING)


async def _first_ms(method: Callable[[Any], Any], request: object, kind: str) -> float:
    """Return the time from the call to the first message of a kind; read the rest."""
    started_at = time.perf_counter()
    call = method(request)
    taken = None
    while (response := await call.read()) is not grpc.aio.EOF:
        if taken is None and response.HasField(kind):
            taken = 1e3 * (time.perf_counter() - started_at)
    if taken is None:
        raise RuntimeError(f"no tokens: {await call.details()}")
    return taken
