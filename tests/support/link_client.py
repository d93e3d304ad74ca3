"""The router's end of a Link, for tests: submits requests and gathers what comes back."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from octavo.v1 import engine_pb2, engine_pb2_grpc, types_pb2

TIMEOUT_S = 30.0


def a_submit(
    stream_id: int = 1, prompt: list[int] | None = None, max_tokens: int = 4, **fields: object
) -> engine_pb2.Submit:
    """Return a greedy request; `fields` of Submit win."""
    submit = engine_pb2.Submit(
        stream_id=stream_id,
        request_id=f"request-{stream_id}",
        prompt_token_ids=[11, 12, 13] if prompt is None else prompt,
        sampling=types_pb2.SamplingParams(temperature=0, seed=0, max_tokens=max_tokens),
    )
    submit.MergeFrom(engine_pb2.Submit(**fields))  # type: ignore[arg-type]
    return submit


class LinkClient:
    """An open link. Everything received is kept. `bases` holds where the output of a resumed choice starts."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.messages: list[engine_pb2.LinkResponse] = []
        self.tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[int, int], engine_pb2.ChoiceEnd] = {}
        self.bases: dict[tuple[int, int], int] = {}
        self.error: grpc.aio.AioRpcError | None = None
        self._told = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def submit(self, submit: engine_pb2.Submit) -> None:
        await self.call.write(engine_pb2.LinkRequest(submit=submit))

    async def cancel(self, stream_id: int, *choices: int) -> None:
        cancel = engine_pb2.Cancel(stream_id=stream_id, choices=choices)
        await self.call.write(engine_pb2.LinkRequest(cancel=cancel))

    async def credit(self, stream_id: int, tokens: int) -> None:
        message = engine_pb2.Credit(stream_id=stream_id, max_output_tokens=tokens)
        await self.call.write(engine_pb2.LinkRequest(credit=message))

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until a condition on what was received holds."""
        async with asyncio.timeout(TIMEOUT_S), self._told:
            while not holds():
                assert not self._reading.done(), f"the link ended: {self.error}"
                await self._told.wait()

    async def next(
        self, kind: str, holds: Callable[[engine_pb2.LinkResponse], object] = bool
    ) -> engine_pb2.LinkResponse:
        """Return the first message of a kind, from now on, for which a condition holds."""
        seen = len(self.messages)

        def found() -> list[engine_pb2.LinkResponse]:
            return [m for m in self.messages[seen:] if m.WhichOneof("message") == kind and holds(m)]

        await self.until(found)
        return found()[0]

    async def ended(self, stream_id: int = 1, choice: int = 0) -> engine_pb2.ChoiceEnd:
        await self.until(lambda: (stream_id, choice) in self.ends)
        return self.ends[stream_id, choice]

    async def rejected(self) -> engine_pb2.Rejected:
        def found() -> list[engine_pb2.Rejected]:
            return [m.rejected for m in self.messages if m.WhichOneof("message") == "rejected"]

        await self.until(found)
        return found()[-1]

    async def broken(self) -> grpc.aio.AioRpcError | None:
        """Wait for the end of the link; return its error, if it ended with one."""
        await asyncio.wait_for(asyncio.shield(self._reading), TIMEOUT_S)
        return self.error

    async def close(self) -> None:
        self.call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for message in self.call:
                async with self._told:
                    self._take(message)
                    self._told.notify_all()
        except grpc.aio.AioRpcError as error:
            self.error = error
        except asyncio.CancelledError:
            pass
        async with self._told:
            self._told.notify_all()

    def _take(self, message: engine_pb2.LinkResponse) -> None:
        self.messages.append(message)
        if message.WhichOneof("message") != "step":
            return
        step = message.step
        for index, token_id in enumerate(step.token_ids):
            key = step.stream_ids[index], step.choices[index] if step.choices else 0
            assert step.positions[index] == len(self.tokens[key]) + self.bases.get(key, 0), (
                "a token is missing or comes twice"
            )
            self.tokens[key].append(token_id)
        for end in step.ends:
            assert (end.stream_id, end.choice) not in self.ends, "a choice ended twice"
            self.ends[end.stream_id, end.choice] = end


@asynccontextmanager
async def open_link(
    stub: engine_pb2_grpc.EngineServiceAsyncStub, router_id: str = "router-1", *, page_events: bool = False
) -> AsyncIterator[LinkClient]:
    """A link that has been welcomed."""
    call = stub.Link()  # type: ignore[call-arg]
    hello = engine_pb2.Hello(router_id=router_id, protocol_version=1, page_events=page_events)
    await call.write(engine_pb2.LinkRequest(hello=hello))
    client = LinkClient(call)
    try:
        await client.until(lambda: client.messages)
        assert client.messages[0].WhichOneof("message") == "welcome"
        yield client
    finally:
        await client.close()
