"""A gateway's end of VllmEngine, for tests."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import grpc
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc
from support.engine_process import Gate


def vllm_stub(channel: grpc.aio.Channel) -> Any:
    return vllm_engine_pb2_grpc.VllmEngineStub(channel)


def a_request(
    prompt: list[int] | None = None, *, stream: bool = True, request_id: str = "request-1", **sampling: object
) -> Any:
    """Return a greedy request of 4 tokens; `sampling` wins."""
    return vllm_engine_pb2.GenerateRequest(
        request_id=request_id,
        tokenized=vllm_engine_pb2.TokenizedInput(input_ids=[11, 12, 13] if prompt is None else prompt),
        sampling_params=vllm_engine_pb2.SamplingParams(**{"temperature": 0, "seed": 0, "max_tokens": 4} | sampling),
        stream=stream,
    )


class Answer:
    """Everything that one Generate call brought."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.ends: dict[int, Any] = {}
        self.token_ids: dict[int, list[int]] = defaultdict(list)
        self.logprobs: dict[int, list[float]] = defaultdict(list)

    def add(self, response: Any) -> None:
        if response.WhichOneof("response") == "chunk":
            chunk = response.chunk
            assert chunk.index not in self.ends, "a token comes after the end of its choice"
            assert chunk.completion_tokens == len(chunk.token_ids) > 0
            self.chunks.append(chunk)
            self.token_ids[chunk.index] += chunk.token_ids
            self.logprobs[chunk.index] += chunk.output_logprobs.token_logprobs
        else:
            end = response.complete
            assert end.index not in self.ends, "a choice ended twice"
            self.ends[end.index] = end
            self.token_ids[end.index] += end.output_ids
            self.logprobs[end.index] += end.output_logprobs.token_logprobs


async def answer_to(vllm: Any, request: Any) -> Answer:
    """Return the whole answer to a request."""
    answer = Answer()
    async for response in vllm.Generate(request, timeout=30):
        answer.add(response)
    return answer


async def rest_of(call: Any, answer: Answer) -> Answer:
    """Read a call to its end."""
    while (response := await call.read()) is not grpc.aio.EOF:
        answer.add(response)
    return answer


async def begun(vllm: Any, gate: Gate, request: Any, num_tokens: int = 3) -> tuple[Any, Answer]:
    """Start a request and let it run for so many steps; return its call and what it brought."""
    call, answer = vllm.Generate(request), Answer()
    gate.let_pass(num_tokens)
    while len(answer.token_ids[0]) < num_tokens:
        answer.add(await call.read())
    return call, answer
