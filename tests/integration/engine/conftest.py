from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from octavo.v1 import engine_pb2_grpc
from support.engine_process import EngineProcess, Gate, running_engine
from support.link_client import LinkClient, open_link
from support.shared_engine import Addresses, shared_engine


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    """An engine of the test's own."""
    async with running_engine() as engine:
        yield engine


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Holds each step of `gated_engine` until it lets it pass."""
    gate = Gate(tmp_path / "steps")
    yield gate
    gate.close()


@pytest_asyncio.fixture
async def gated_engine(gate: Gate) -> AsyncIterator[EngineProcess]:
    """An engine of the test's own, with a gate."""
    async with running_engine(env={"OCTAVO_FAKE_STEP_GATE": str(gate.path)}) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared() -> Iterator[Addresses]:
    with shared_engine() as addresses:
        yield addresses


@pytest_asyncio.fixture
async def stub(shared: Addresses) -> AsyncIterator[engine_pb2_grpc.EngineServiceAsyncStub]:
    """A stub of the shared engine."""
    async with grpc.aio.insecure_channel(shared.engine) as channel:
        yield engine_pb2_grpc.EngineServiceStub(channel)


@pytest_asyncio.fixture
async def link(stub: engine_pb2_grpc.EngineServiceAsyncStub) -> AsyncIterator[LinkClient]:
    """A link to the shared engine."""
    async with open_link(stub) as link:
        yield link


@pytest.fixture(scope="session")
def shared_gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Addresses, Gate]]:
    gate = Gate(tmp_path_factory.mktemp("gated") / "steps")
    with shared_engine(OCTAVO_FAKE_STEP_GATE=str(gate.path)) as addresses:
        yield addresses, gate
        gate.let_pass(1000)
    gate.close()


@pytest.fixture
def steps(shared_gated: tuple[Addresses, Gate]) -> Iterator[Gate]:
    """Holds each step of `gated_stub` until it lets it pass. A test must leave no request behind."""
    gate = shared_gated[1]
    yield gate
    gate.shut()


@pytest_asyncio.fixture
async def gated_stub(shared_gated: tuple[Addresses, Gate]) -> AsyncIterator[engine_pb2_grpc.EngineServiceAsyncStub]:
    async with grpc.aio.insecure_channel(shared_gated[0].engine) as channel:
        yield engine_pb2_grpc.EngineServiceStub(channel)
