"""One Link stream: a router's requests up, each step's tokens, page events, load and heartbeats down."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

import structlog
from octavo.attributes import Log
from octavo.errors import InternalError, InvalidRequest, OctavoError
from octavo.v1 import engine_pb2

from octavo_engine.outbox import Outbox
from octavo_engine.switchboard import Switchboard

PROTOCOL_VERSION: Final = 1
HELLO_TIMEOUT_S: Final = 5.0

_ROUTER_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
_log = structlog.get_logger()


class Link:
    """A router's end of the switchboard.

    Args:
        switchboard: where requests go.
        hello: the router's first message.
    """

    def __init__(self, switchboard: Switchboard, hello: engine_pb2.Hello) -> None:
        self.number = 0
        self.router_id = hello.router_id
        self.wants_pages = hello.page_events
        self._switchboard = switchboard
        self._outbox = Outbox()

    def deliver(self, response: engine_pb2.LinkResponse) -> None:
        """Queue a message for the router."""
        self._outbox.put(response)

    def finish(self) -> None:
        """End the stream after what waits has gone."""
        self._outbox.finish()

    def beat(self) -> None:
        """Queue a heartbeat with the newest load."""
        response = engine_pb2.LinkResponse()
        response.heartbeat.time_ns = time.time_ns()
        response.heartbeat.step_id = self._switchboard.load.step_id
        response.heartbeat.num_requests = len(self._switchboard)
        self._switchboard.load.fill(response.heartbeat.load)
        self._outbox.put(response)

    async def run(self, requests: AsyncIterator[engine_pb2.LinkRequest]) -> AsyncGenerator[engine_pb2.LinkResponse]:
        """Take the router's messages, and yield those for it, until it ends the stream or stops reading.

        Raises:
            Overloaded: the router does not drain the stream.
            InvalidRequest: the router breaks the protocol.
        """
        intake = asyncio.create_task(self._read(requests), name=f"link-{self.number}")
        try:
            async with aclosing(self._outbox.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            intake.cancel()
            await asyncio.gather(intake, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[engine_pb2.LinkRequest]) -> None:
        error: OctavoError | None = InternalError("link_failed", "the link failed inside the engine")
        try:
            async for request in requests:
                self._take(request)
                await self._switchboard.drained()
            error = None
        except OctavoError as refused:
            error = refused
        finally:
            self._outbox.close(error)

    def _take(self, request: engine_pb2.LinkRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "submit":
            self._submit(request.submit)
        elif kind == "cancel":
            self._switchboard.cancel(self, request.cancel.stream_id, request.cancel.choices)
        elif kind == "credit":
            self._switchboard.credit(self, request.credit.stream_id, request.credit.max_output_tokens)
        else:
            raise InvalidRequest("unexpected_message", "only submit, cancel and credit may follow hello")

    def _submit(self, submit: engine_pb2.Submit) -> None:
        self._switchboard.load.took(self.number, self.router_id, submit.stream_id)
        try:
            self._switchboard.submit(self, submit)
        except OctavoError as error:
            response = engine_pb2.LinkResponse()
            response.rejected.stream_id = submit.stream_id
            response.rejected.code = error.code.value[0]
            response.rejected.reason = error.reason
            response.rejected.message = error.message
            response.rejected.retry_after_ms = round((error.retry_after_s or 0) * 1000)
            self._outbox.put(response)
            _log.info(
                "request_rejected",
                reason=error.reason,
                **{Log.REQUEST_ID: submit.request_id[:128], Log.ROUTER_ID: self.router_id},
            )


async def read_hello(requests: AsyncIterator[engine_pb2.LinkRequest]) -> engine_pb2.Hello:
    """Return the first message of a link.

    Raises:
        InvalidRequest: it is not a hello, or one that this engine does not understand.
    """
    try:
        first = await asyncio.wait_for(anext(requests), HELLO_TIMEOUT_S)
    except (StopAsyncIteration, TimeoutError):
        raise InvalidRequest("missing_hello", "a link opens with hello") from None
    if first.WhichOneof("message") != "hello":
        raise InvalidRequest("missing_hello", "a link opens with hello")
    hello = first.hello
    if hello.protocol_version != PROTOCOL_VERSION:
        raise InvalidRequest(
            "protocol_version",
            f"this engine speaks version {PROTOCOL_VERSION} of the protocol, not {hello.protocol_version}",
            field="hello.protocol_version",
        )
    if not _ROUTER_ID.match(hello.router_id):
        raise InvalidRequest(
            "invalid_router_id", "router_id must be 1 to 128 visible characters", field="hello.router_id"
        )
    return hello
