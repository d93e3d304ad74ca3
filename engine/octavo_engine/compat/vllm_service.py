"""vllm.grpc.engine.VllmEngine: the gateway's proto in, the engine's own switchboard, the gateway's proto out.

Requests take the path of `EngineService.Generate`; nothing here schedules. Errors are the same statuses with the same
details. What engines here do not do is refused by name.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FileDescriptor
from octavo.errors import Unavailable, Unsupported
from octavo.v1 import engine_pb2
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc

from octavo_engine.compat.kv_events import kv_event_batches
from octavo_engine.compat.loads import Loads
from octavo_engine.compat.model_files import ModelFiles
from octavo_engine.compat.page_notes import PageNotes
from octavo_engine.compat.step_feed import StepFeed
from octavo_engine.compat.translation import submit_of
from octavo_engine.compat.vllm_stream import VllmStream
from octavo_engine.readiness import Readiness
from octavo_engine.switchboard import Switchboard

CHUNK_BYTES: Final = 1 << 20
"""Of a tokenizer archive in one message; gRPC's default limit is four times that."""


class VllmService(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]  # the package has no types
    """What a gateway calls.

    Args:
        switchboard: the live requests.
        feed: follows the steps; the switchboard must tell it of each.
        readiness: whether the engine takes requests.
        flush: drops the cached pages.
        model: the engine's `model` setting.
    """

    def __init__(
        self,
        switchboard: Switchboard,
        feed: StepFeed,
        readiness: Readiness,
        *,
        flush: Callable[[], Awaitable[int]],
        model: str | None,
    ) -> None:
        self._switchboard = switchboard
        self._feed = feed
        self._readiness = readiness
        self._flush = flush
        self._model = model
        self._files: ModelFiles | None = None
        self._info: engine_pb2.EngineInfo | None = None
        self._streams: defaultdict[str, set[VllmStream]] = defaultdict(set)
        self._started_s = time.monotonic()

    def add_to(self, server: grpc.aio.Server) -> FileDescriptor:
        """Serve on a server that has not started; return the service's description, for reflection."""
        vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(self, server)
        description: FileDescriptor = vllm_engine_pb2.DESCRIPTOR
        return description

    def open(self, info: engine_pb2.EngineInfo) -> None:
        """Start answering: the model is loaded."""
        self._info = info

    # --- requests ---

    async def Generate(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802, D102 - the service's name
        info = self._ready()
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        submit = submit_of(request, headers)
        stream = VllmStream(request)
        with self._switchboard.plugged(stream), self._named(submit.request_id, stream):
            num_choices = self._switchboard.submit(stream, submit)
            stream.open(PageNotes(self._feed, info, submit.prompt_token_ids, num_choices))
            async with aclosing(stream.responses()) as responses:
                async for response in responses:
                    yield response

    async def Abort(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del context
        for request_id in request.request_ids:
            for stream in self._streams.get(request_id, ()):
                self._switchboard.cancel(stream, 0)
        return vllm_engine_pb2.AbortResponse()

    # --- facts ---

    async def HealthCheck(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        is_ready = self._readiness.is_ready
        message = "" if is_ready else "the engine is loading its model, draining or stalled"
        return vllm_engine_pb2.HealthCheckResponse(healthy=is_ready, message=message)

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        model, files = self._ready().model, await self._model_files()
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=str(files.directory),
            tokenizer_path=str(files.directory),
            served_model_name=model.name,
            is_generation=True,
            max_context_length=model.max_model_len,
            max_req_input_len=model.max_model_len - 1,
            vocab_size=model.vocab_size,
            model_type=files.model_type,
            architectures=files.architectures,
            eos_token_ids=model.eos_token_ids,
            bos_token_id=files.bos_token_id,
            pad_token_id=files.pad_token_id,
        )

    async def GetServerInfo(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        info = self._ready()
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=len(self._switchboard),
            uptime_seconds=time.monotonic() - self._started_s,
            server_type="vllm-grpc",  # the kind of service; gateways choose their client by it
            data_parallel_size=1,
            block_size=info.model.page_size,
            model_dtype=info.dtype,
            max_num_seqs=info.max_sequences,
        )

    async def GetLoads(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        info = self._ready()
        return vllm_engine_pb2.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(),
            version=info.version,
            dp_rank_count=1,
            loads=[Loads(self._switchboard, self._feed, info).polled()],
        )

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802, D102 - as above
        del request, context
        self._ready()
        archive = (await self._model_files()).tokenizer
        starts = range(0, len(archive.content), CHUNK_BYTES)
        for start in starts:
            sha256 = archive.sha256 if start == starts[-1] else ""
            yield common_pb2.GetTokenizerChunk(data=archive.content[start : start + CHUNK_BYTES], sha256=sha256)

    async def SubscribeKvEvents(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802, D102 - as above
        del request  # whatever a subscriber knew, it gets the whole state: this engine keeps no history
        info = self._ready()
        # A gateway waits for the headers, and takes an engine that sends none for unreachable.
        await context.send_initial_metadata(())
        loads = Loads(self._switchboard, self._feed, info)
        with self._feed.subscribed() as subscription:
            async with aclosing(kv_event_batches(subscription, loads, info.model.page_size)) as batches:
                async for batch in batches:
                    yield batch

    # --- operations ---

    async def FlushCache(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        self._ready()
        num_pages = await self._flush()
        return common_pb2.FlushCacheResponse(success=True, message=f"{num_pages} pages dropped")

    async def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        raise Unsupported("no_embeddings", "this engine generates text; it makes no embeddings")

    async def StartProfile(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        raise Unsupported("no_profiler", "this engine has no profiler to start; its traces show where time goes")

    async def StopProfile(self, request: Any, context: Any) -> Any:  # noqa: N802, D102 - as above
        del request, context
        raise Unsupported("no_profiler", "this engine has no profiler to stop; its traces show where time goes")

    # --- inside ---

    def _ready(self) -> engine_pb2.EngineInfo:
        if self._info is None:
            raise Unavailable("model_loading", "the engine is loading its model; try again", retry_after_s=1.0)
        return self._info

    async def _model_files(self) -> ModelFiles:
        if self._files is None:
            self._files = await asyncio.to_thread(ModelFiles.read, self._model)
        return self._files

    @contextmanager
    def _named(self, request_id: str, stream: VllmStream) -> Iterator[None]:
        """Let Abort find a stream while it lasts. A gateway that tries again may use an id twice."""
        self._streams[request_id].add(stream)
        try:
            yield
        finally:
            self._streams[request_id].discard(stream)
            if not self._streams[request_id]:
                del self._streams[request_id]
