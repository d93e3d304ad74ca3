"""A real engine process with the fake core behind a real router: everything but the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.revision import tokenizer_revision
from octavo.v1 import engine_pb2, engine_pb2_grpc
from octavo_router.journal import Journal
from support.engine_process import EngineProcess, running_engine
from support.router_client import RouterClient


@dataclass
class RoutedEngine:
    """An engine and its router."""

    router: RouterClient
    engine: EngineProcess
    stub: engine_pb2_grpc.EngineServiceAsyncStub

    async def load(self) -> engine_pb2.Load:
        """Return what the engine says of itself."""
        return (await self.stub.Describe(engine_pb2.DescribeRequest())).load

    async def until_load(self, holds: Callable[[engine_pb2.Load], object]) -> engine_pb2.Load:
        """Ask the engine for its load until a condition holds."""
        while not holds(load := await self.load()):
            pass
        return load

    def journals(self) -> list[Journal]:
        """Return the journals of the router's requests at the engine, oldest first."""
        session = self.router.router.fleet.engines[0].link._session
        assert session is not None
        return [attempt._journal for attempt in session.attempts.values()]


@asynccontextmanager
async def routed_engine(
    new_router: Callable[..., Awaitable[RouterClient]],
    model_directory: Path,
    *flags: str,
    env: dict[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[RoutedEngine]:
    """Start both; `flags` and `env` are the engine's, `options` the router's."""
    environ = {"OCTAVO_FAKE_TOKENIZER": tokenizer_revision(model_directory)} | (env or {})
    async with running_engine("--model-name", "tiny", *flags, env=environ) as engine:
        router = await new_router(engines=f"engine-1={engine.address}", **options)
        await router.serving("engine-1")
        yield RoutedEngine(router, engine, engine.stub())
