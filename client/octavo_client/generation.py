"""One running generation: an iterator of events that can be cancelled, read to its end, and seen in a trace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import grpc
from octavo.attributes import Attribute
from octavo.attributes import Event as SpanEvent
from octavo.errors import Cancelled, InternalError, OctavoError, from_rpc_error
from octavo.v1 import inference_pb2
from opentelemetry.trace import Span, Status, StatusCode

from octavo_client.collector import Collector
from octavo_client.translation import event_of
from octavo_client.values import Accepted, Chunk, Completion, Event, Finished

GenerateCall = grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


class Generation(AsyncIterator[Event]):
    """A request in flight. Iterate it for events, or await `completion()`.

    It ends by itself after the last `Finished`. Leave it early only through `cancel()` or as a context manager; either
    frees what it holds in the engine. Errors are OctavoErrors.
    """

    def __init__(self, call: GenerateCall, *, request_id: str, num_choices: int, span: Span) -> None:
        self.request_id = request_id
        self._call = call
        self._span = span
        self._num_choices = num_choices
        self._num_open = num_choices
        self._started = time.monotonic()
        self._ttft_s: float | None = None
        self._ended_at: float | None = None
        self._cancelled = False

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the call to the first token; None before it."""
        return self._ttft_s

    @property
    def duration_s(self) -> float:
        """Seconds from the call until now, or until the end."""
        return (self._ended_at or time.monotonic()) - self._started

    def cancel(self) -> None:
        """Give the request up. A reader gets octavo.errors.Cancelled."""
        if self._ended_at is None:
            self._cancelled = True
            self._call.cancel()
            self._end(None)

    async def completion(self) -> Completion:
        """Read the rest and return the whole output.

        Raises:
            OctavoError: the request failed.
        """
        collector = Collector(self._num_choices)
        async with self:
            async for event in self:
                collector.add(event)
        return collector.completion(ttft_s=self._ttft_s, duration_s=self.duration_s)

    async def __anext__(self) -> Event:
        while True:
            response = await self._read()
            event = event_of(response)
            if event is not None:
                self._note(event)
                return event

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # Dropped by its owner without a word: the engine must not go on for nobody. The loop may be closed already.
        with contextlib.suppress(RuntimeError):
            self.cancel()

    async def _read(self) -> inference_pb2.GenerateResponse:
        if self._cancelled:
            raise _given_up()
        if self._ended_at is not None:
            raise StopAsyncIteration
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            self._end(failure)
            raise failure from None
        except asyncio.CancelledError:
            if self._cancelled:  # by another task: this one is not cancelled, its request is
                raise _given_up() from None
            self.cancel()
            raise
        if not isinstance(response, inference_pb2.GenerateResponse):  # grpc.aio.EOF
            if self._num_open > 0:
                failure = InternalError("stream_incomplete", "the router ended the stream before its last event")
                self._end(failure)
                raise failure
            self._end(None)
            raise StopAsyncIteration
        return response

    def _note(self, event: Event) -> None:
        match event:
            case Accepted():
                self._span.set_attribute(Attribute.ENGINE_ID, event.engine_id)
                self._span.set_attribute(Attribute.MATCHED_PAGES, event.matched_pages)
            case Chunk() if self._ttft_s is None and event.num_tokens > 0:
                self._ttft_s = time.monotonic() - self._started
                self._span.add_event(SpanEvent.FIRST_TOKEN)
                self._span.set_attribute(Attribute.TTFT_S, self._ttft_s)
            case Finished():
                self._num_open -= 1
                self._span.set_attribute(Attribute.FINISH_REASONS, [event.reason.value])
                self._span.set_attribute(Attribute.INPUT_TOKENS, event.usage.prompt_tokens)
                self._span.set_attribute(Attribute.CACHED_TOKENS, event.usage.cached_tokens)
                self._span.set_attribute(Attribute.OUTPUT_TOKENS, event.usage.output_tokens)
                self._span.set_attribute(Attribute.MOVES, event.num_moves)
            case _:
                pass

    def _end(self, failure: OctavoError | None) -> None:
        if self._ended_at is not None:
            return
        self._ended_at = time.monotonic()
        if failure is not None:
            self._span.set_status(Status(StatusCode.ERROR, failure.reason))
        elif self._cancelled:
            self._span.set_status(Status(StatusCode.ERROR, "cancelled"))
        self._span.end()


def _given_up() -> Cancelled:
    return Cancelled("client_cancelled", "the generation was cancelled by its own client")
