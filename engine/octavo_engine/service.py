"""EngineService: proto in, switchboard, proto out."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import structlog
from octavo.attributes import Log, Metadata
from octavo.errors import Unavailable
from octavo.v1 import engine_pb2, engine_pb2_grpc

from octavo_engine.direct import DirectStream
from octavo_engine.link import Link, read_hello
from octavo_engine.page_events import ResidentPages
from octavo_engine.switchboard import Switchboard

_log = structlog.get_logger()


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """What routers, and tools that talk to one engine, call.

    Args:
        switchboard: the live requests.
        pages: the resident pages.
    """

    def __init__(self, switchboard: Switchboard, pages: ResidentPages) -> None:
        self._switchboard = switchboard
        self._pages = pages
        self._info: engine_pb2.EngineInfo | None = None

    def open(self, info: engine_pb2.EngineInfo) -> None:
        """Start answering: the model is loaded."""
        self._info = info

    async def Link(  # noqa: N802, D102 - the contract's name; described there
        self, request_iterator: Any, context: Any
    ) -> AsyncGenerator[engine_pb2.LinkResponse]:
        del context
        info = self._ready()
        link = Link(self._switchboard, await read_hello(request_iterator))
        with self._switchboard.plugged(link):
            _log.info("link_opened", **{Log.ROUTER_ID: link.router_id})
            self._switchboard.load.linked(link.number, link.router_id)
            welcome = engine_pb2.Welcome(engine=info, load=self._switchboard.load.message())
            yield engine_pb2.LinkResponse(welcome=welcome)
            try:
                async with aclosing(link.run(request_iterator)) as messages:
                    async for message in messages:
                        yield message
            finally:
                self._switchboard.load.unlinked(link.number, link.router_id)
                _log.info("link_closed", **{Log.ROUTER_ID: link.router_id})

    async def Generate(  # noqa: N802, D102 - as above
        self, request: engine_pb2.EngineServiceGenerateRequest, context: Any
    ) -> AsyncGenerator[engine_pb2.EngineServiceGenerateResponse]:
        submit = request.submit
        submit.stream_id = 0
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        submit.request_id = submit.request_id or headers.get(Metadata.REQUEST_ID) or uuid.uuid4().hex
        submit.traceparent = submit.traceparent or headers.get(Metadata.TRACEPARENT, "")
        if not submit.sampling.HasField("seed"):
            submit.sampling.seed = secrets.randbits(64)
        stream = DirectStream()
        with self._switchboard.plugged(stream):
            num_choices = self._switchboard.submit(stream, submit)
            async with aclosing(stream.responses(num_choices)) as responses:
                async for response in responses:
                    yield response

    async def Describe(  # noqa: N802, D102 - as above
        self, request: engine_pb2.DescribeRequest, context: Any
    ) -> engine_pb2.DescribeResponse:
        del request, context
        return engine_pb2.DescribeResponse(engine=self._ready(), load=self._switchboard.load.message())

    async def PageSnapshot(  # noqa: N802, D102 - as above
        self, request: engine_pb2.PageSnapshotRequest, context: Any
    ) -> engine_pb2.PageSnapshotResponse:
        del request, context
        self._ready()
        return self._pages.snapshot()

    def _ready(self) -> engine_pb2.EngineInfo:
        if self._info is None:
            raise Unavailable("model_loading", "the engine is loading its model; try again", retry_after_s=1.0)
        return self._info
