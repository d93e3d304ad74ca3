"""A client of a router under test: sends requests and puts the answers together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from octavo.v1 import admin_pb2_grpc, inference_pb2, inference_pb2_grpc, types_pb2
from octavo_router.server import RouterServer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@dataclass
class RouterClient:
    """A router under test, and stubs that talk to it."""

    router: RouterServer
    address: str
    inference: inference_pb2_grpc.InferenceServiceAsyncStub
    admin: admin_pb2_grpc.AdminServiceAsyncStub
    channel: grpc.aio.Channel
    spans: InMemorySpanExporter

    async def until(self, reached: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait for a state of the fleet."""
        async with asyncio.timeout(timeout_s):
            while not reached():
                changed = self.router.fleet.changed
                try:
                    async with asyncio.timeout(0.02):  # the directory and Redis tell nobody that they changed
                        await changed.wait()
                except TimeoutError:
                    continue

    async def serving(self, *engine_ids: str) -> None:
        """Wait until exactly these engines take requests and their pages are known."""
        fleet = self.router.fleet
        await self.until(
            lambda: (
                [engine.engine_id for engine in fleet.serving()] == sorted(engine_ids)
                and not any(fleet.directory.needs_snapshot(engine_id) for engine_id in engine_ids)
            )
        )

    async def generate(
        self, prompt: Any = "hello world", *, metadata: Any = (), timeout_s: float = 20.0, **options: Any
    ) -> Answer:
        """Run one request to its end."""
        call = self.inference.Generate(request(prompt, **options), metadata=metadata, timeout=timeout_s)
        answer = Answer()
        async for response in call:
            answer.add(response)
        return answer


@dataclass
class Answer:
    """What one stream brought, put together."""

    accepted: inference_pb2.Accepted | None = None
    text: dict[int, str] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    finished: list[inference_pb2.Finished] = field(default_factory=list)
    origin: inference_pb2.Origin | None = None
    num_chunks: int = 0

    def add(self, response: inference_pb2.GenerateResponse) -> None:
        if response.HasField("accepted"):
            assert self.accepted is None
            self.accepted = response.accepted
        elif response.HasField("chunk"):
            chunk = response.chunk
            known = self.token_ids.setdefault(chunk.index, [])
            assert chunk.position == len(known), "chunks are contiguous"
            assert len(chunk.token_ids) == chunk.num_tokens
            known.extend(chunk.token_ids)
            if chunk.HasField("origin"):
                self.origin = chunk.origin
            self.text[chunk.index] = self.text.get(chunk.index, "") + chunk.text
            self.num_chunks += 1
        else:
            self.finished.append(response.finished)


def request(
    prompt: Any = "hello world",
    *,
    max_tokens: int = 8,
    seed: int | None = 7,
    logprobs: bool = False,
    **sampling: Any,
) -> inference_pb2.GenerateRequest:
    """Return a request that asks for token ids; a list of ints is a token prompt, a list of pairs a chat."""
    if isinstance(prompt, str):
        message = inference_pb2.Input(text=prompt)
    elif prompt and isinstance(prompt[0], tuple):
        messages = [types_pb2.ChatMessage(role=role, content=content) for role, content in prompt]
        message = inference_pb2.Input(chat=inference_pb2.ChatInput(messages=messages))
    else:
        message = inference_pb2.Input(tokens=inference_pb2.TokenInput(ids=prompt))
    params = types_pb2.SamplingParams(max_tokens=max_tokens, seed=seed, **sampling)
    return inference_pb2.GenerateRequest(input=message, sampling=params, return_token_ids=True, logprobs=logprobs)
