"""A router that does what a test tells it: InferenceService and AdminService over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from octavo.errors import OctavoError
from octavo.rpc_errors import ErrorInterceptor
from octavo.v1 import admin_pb2, admin_pb2_grpc, engine_pb2, inference_pb2, inference_pb2_grpc, types_pb2

Context = grpc.aio.ServicerContext[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
Script = Callable[[inference_pb2.GenerateRequest, Context], AsyncIterator[inference_pb2.GenerateResponse]]

MODEL = types_pb2.ModelInfo(name="tiny", revision="r1", max_model_len=64, vocab_size=99, page_size=4, eos_token_ids=[2])


def accepted(**changes: str | int) -> inference_pb2.GenerateResponse:
    facts = {"request_id": "r", "trace_id": "", "engine_id": "engine-1", "prompt_tokens": 9, "matched_pages": 1}
    return inference_pb2.GenerateResponse(accepted=inference_pb2.Accepted(**{**facts, "reason": "why"} | changes))


def chunk(text: str, position: int, index: int = 0, **more: list[int] | list[float]) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        chunk=inference_pb2.OutputChunk(index=index, text=text, position=position, num_tokens=1, **more)
    )


def finished(
    index: int = 0, reason: types_pb2.FinishReason.ValueType = types_pb2.FINISH_REASON_STOP, output_tokens: int = 2
) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        finished=inference_pb2.Finished(
            index=index,
            reason=reason,
            engine_id="engine-2",
            num_moves=1,
            usage=types_pb2.Usage(prompt_tokens=9, cached_tokens=4, output_tokens=output_tokens),
            timing=types_pb2.EngineTiming(queue_ns=1_000_000, prefill_ns=2_000_000_000, peak_pages=3),
        )
    )


async def say_hello(
    _request: inference_pb2.GenerateRequest, _context: Context
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    for response in (accepted(), chunk("Hel", 0), chunk("lo", 1), finished()):
        yield response


@dataclass
class ScriptedRouter(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Records what it was asked; answers what the test set."""

    address: str = ""
    script: Script = say_hello
    failure: OctavoError | None = None
    """Raised by the unary methods."""
    engines: list[admin_pb2.EngineStatus] = field(default_factory=list)
    requests: list[inference_pb2.GenerateRequest] = field(default_factory=list)
    inputs: list[inference_pb2.Input] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(  # noqa: N802  # gRPC's name
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        try:
            async for response in self.script(request, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def Tokenize(  # noqa: N802
        self, request: inference_pb2.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.TokenizeResponse:
        del context
        self.inputs.append(request.input)
        self._fail_if_told()
        return inference_pb2.TokenizeResponse(token_ids=[5, 6, 7])

    async def ListModels(  # noqa: N802
        self, request: inference_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.ListModelsResponse:
        del request, context
        self._fail_if_told()
        return inference_pb2.ListModelsResponse(models=[MODEL])

    async def Explain(  # noqa: N802
        self, request: inference_pb2.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.ExplainResponse:
        del context
        self.inputs.append(request.input)
        self._fail_if_told()
        costs = [
            inference_pb2.EngineCost(engine_id="engine-2", matched_pages=2, uncached_tokens=1, cost_s=0.01),
            inference_pb2.EngineCost(engine_id="engine-1", matched_pages=0, uncached_tokens=9, cost_s=0.09),
        ]
        return inference_pb2.ExplainResponse(prompt_tokens=9, prompt_pages=2, candidates=costs)

    async def ListEngines(  # noqa: N802
        self, request: admin_pb2.ListEnginesRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListEnginesResponse:
        del request, context
        self._fail_if_told()
        return admin_pb2.ListEnginesResponse(engines=self.engines)

    def _fail_if_told(self) -> None:
        if self.failure is not None:
            raise self.failure


def engine_status(engine_id: str, state: str = "serving") -> admin_pb2.EngineStatus:
    return admin_pb2.EngineStatus(
        engine=engine_pb2.EngineInfo(
            engine_id=engine_id, model=MODEL, num_pages=100, backend="torch", device="cpu", dtype="bfloat16"
        ),
        load=engine_pb2.Load(num_running=3, pages_in_use=7, pages_cached=8),
        address="127.0.0.1:1",
        state=state,
        age_ms=250,
    )


@asynccontextmanager
async def scripted_router() -> AsyncIterator[ScriptedRouter]:
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),))
    router = ScriptedRouter()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(router, server)
    router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield router
    finally:
        await server.stop(None)
