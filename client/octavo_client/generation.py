"""One running generation: an iterator of events that can be cancelled, read to its end, and seen in a trace."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Self

import grpc
from octavo.attributes import Attribute
from octavo.attributes import Event as SpanEvent
from octavo.errors import Cancelled, DeadlineExceeded, InternalError, OctavoError, from_rpc_error
from octavo.v1 import inference_pb2
from opentelemetry.trace import Span, Status, StatusCode

from octavo_client.collector import Collector
from octavo_client.persistence import Persistence
from octavo_client.routers import Router, Routers
from octavo_client.transcript import Transcript
from octavo_client.values import Accepted, Chunk, Completion, Event, Finished

GenerateCall = grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]


class Generation(AsyncIterator[Event]):
    """A request in flight. Iterate it for events, or await `completion()`.

    It ends by itself after the last `Finished`. Leave it early only through `cancel()` or as a context manager; either
    frees what it holds in the engine. Errors are OctavoErrors.

    When its router dies or hangs, it goes on at the next one, each token exactly once: the reader sees a pause.
    """

    def __init__(
        self,
        transcript: Transcript,
        *,
        routers: Routers,
        persistence: Persistence,
        metadata: Sequence[tuple[str, str]],
        timeout_s: float | None,
        request_id: str,
        num_choices: int,
        span: Span,
    ) -> None:
        self.request_id = request_id
        self._transcript = transcript
        self._routers = routers
        self._persistence = persistence
        self._metadata = tuple(metadata)
        self._span = span
        self._num_choices = num_choices
        self._started = time.monotonic()
        self._deadline = None if timeout_s is None else self._started + timeout_s
        self._ttft_s: float | None = None
        self._ended_at: float | None = None
        self._given_up = asyncio.Event()
        self._was_accepted = False  # by the router in use
        self._router, self._call = self._start()

    @property
    def router(self) -> str:
        """Address of the router that carries it now."""
        return self._router.target

    @property
    def num_resumes(self) -> int:
        """Times that it went on at another router."""
        return self._persistence.num_resumes

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
            self._given_up.set()
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
            try:
                event = self._transcript.take(response)
            except InternalError as failure:
                self._call.cancel()
                self._end(failure)
                raise
            if response.HasField("accepted"):
                self._note_accepted()
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

    def _start(self) -> tuple[Router, GenerateCall]:
        """Ask the next router for what is missing."""
        router = self._routers.next()
        timeout_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        call = router.stub.Generate(self._transcript.next_request(), timeout=timeout_s, metadata=self._metadata)
        return router, call

    async def _read(self) -> inference_pb2.GenerateResponse:
        while True:
            if self._given_up.is_set():
                raise _cancelled()
            if self._ended_at is not None:
                raise StopAsyncIteration
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as error:
                await self._persist(from_rpc_error(error))
                continue
            except asyncio.CancelledError:
                if self._given_up.is_set():  # by another task: this one is not cancelled, its request is
                    raise _cancelled() from None
                self.cancel()
                raise
            if isinstance(response, inference_pb2.GenerateResponse):
                return response
            if not self._transcript.is_finished:  # grpc.aio.EOF
                failure = InternalError("stream_incomplete", "the router ended the stream before its last event")
                self._end(failure)
                raise failure
            self._end(None)

    async def _persist(self, failure: OctavoError) -> None:
        """Go on at another router after this one's stream failed.

        Raises:
            OctavoError: the failure is final.
        """
        if self._transcript.is_finished:  # only the stream's own end was lost
            self._end(None)
            return
        now = time.monotonic()
        pause_s = self._persistence.pause_after(
            failure, was_accepted=self._was_accepted, is_fresh=not self._transcript.is_accepted, now=now
        )
        if pause_s is None or not self._transcript.can_resume:
            self._end(failure)
            raise failure from None
        self._router.shun()
        if self._deadline is not None and now + pause_s >= self._deadline:
            failure = DeadlineExceeded("deadline_exceeded", "the deadline passed while no router answered")
            self._end(failure)
            raise failure from None
        if pause_s > 0.0:
            await self._pause(pause_s)
        if not self._given_up.is_set():
            self._was_accepted = False
            self._router, self._call = self._start()

    async def _pause(self, seconds: float) -> None:
        """Wait, but not once the request is given up."""
        with contextlib.suppress(TimeoutError):
            try:
                async with asyncio.timeout(seconds):
                    await self._given_up.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise

    def _note_accepted(self) -> None:
        was_resumed = self._persistence.num_resumes
        self._was_accepted = True
        self._router.welcome()
        self._persistence.accepted()
        if self._persistence.num_resumes > was_resumed:
            self._span.add_event(SpanEvent.RESUMED)

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
        elif self._given_up.is_set():
            self._span.set_status(Status(StatusCode.ERROR, "cancelled"))
        self._span.end()


def _cancelled() -> Cancelled:
    return Cancelled("client_cancelled", "the generation was cancelled by its own client")
