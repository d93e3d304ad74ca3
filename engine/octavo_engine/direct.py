"""One EngineService.Generate call: a reader of a single request, for grpcurl, tests and direct use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from octavo.v1 import engine_pb2


class DirectStream:
    """Collects one request's tokens for a stream that may read slowly.

    Tokens that wait are joined into one chunk for each choice. What can wait is bounded by the request itself:
    max_tokens for each of its choices.
    """

    def __init__(self) -> None:
        self.number = 0
        self._chunks: dict[int, engine_pb2.TokenChunk] = {}
        self._ends: list[engine_pb2.ChoiceEnd] = []
        self._changed = asyncio.Event()

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        """Take a step's results; other messages do not concern a direct call."""
        if response.WhichOneof("message") != "step":
            return
        step = response.step
        for index, token_id in enumerate(step.token_ids):
            choice = step.choices[index] if step.choices else 0
            chunk = self._chunks.get(choice)
            if chunk is None:
                position = step.positions[index]
                chunk = self._chunks[choice] = engine_pb2.TokenChunk(choice=choice, position=position)
            chunk.token_ids.append(token_id)
            chunk.logprobs.append(step.logprobs[index])
        self._ends.extend(step.ends)
        self._changed.set()

    async def responses(self, num_choices: int) -> AsyncGenerator[engine_pb2.EngineServiceGenerateResponse]:
        """Yield chunks as they come, and the end of each choice after its last chunk."""
        num_ended = 0
        while num_ended < num_choices:
            await self._changed.wait()
            self._changed.clear()
            chunks, self._chunks = self._chunks, {}
            ends, self._ends = self._ends, []
            for chunk in chunks.values():
                yield engine_pb2.EngineServiceGenerateResponse(tokens=chunk)
            for end in ends:
                yield engine_pb2.EngineServiceGenerateResponse(end=end)
            num_ended += len(ends)
