from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from octavo.v1 import engine_pb2_grpc
from support.engine_process import Gate
from support.shared_engine import Addresses, shared_engine

pytest.importorskip("smg_grpc_proto", reason="needs the extra smg")

from smg_grpc_proto.generated import vllm_engine_pb2_grpc


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a gateway may read of a model; the fake core needs none of it."""
    directory = tmp_path_factory.mktemp("model")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "pad_token_id": None}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture(scope="session")
def shared(model_directory: Path) -> Iterator[Addresses]:
    with shared_engine(OCTAVO_ENGINE_VLLM_SERVICE="true", OCTAVO_ENGINE_MODEL=str(model_directory)) as addresses:
        yield addresses


@pytest_asyncio.fixture
async def channel(shared: Addresses) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the shared engine."""
    async with grpc.aio.insecure_channel(shared.engine) as channel:
        yield channel


@pytest.fixture
def vllm(channel: grpc.aio.Channel) -> Any:
    """What a gateway has of the shared engine."""
    return vllm_engine_pb2_grpc.VllmEngineStub(channel)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> engine_pb2_grpc.EngineServiceAsyncStub:
    """Octavo's own service of the shared engine."""
    return engine_pb2_grpc.EngineServiceStub(channel)  # type: ignore[return-value]


@pytest.fixture(scope="session")
def shared_gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Addresses, Gate]]:
    gate = Gate(tmp_path_factory.mktemp("gated") / "steps")
    with shared_engine(OCTAVO_ENGINE_VLLM_SERVICE="true", OCTAVO_FAKE_STEP_GATE=str(gate.path)) as addresses:
        yield addresses, gate
        gate.let_pass(1000)
    gate.close()


@pytest.fixture
def steps(shared_gated: tuple[Addresses, Gate]) -> Iterator[Gate]:
    """Holds each step of `gated` until it lets it pass. A test must leave no request behind."""
    gate = shared_gated[1]
    yield gate
    gate.shut()


@pytest_asyncio.fixture
async def gated(shared_gated: tuple[Addresses, Gate]) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to an engine that waits before each step."""
    async with grpc.aio.insecure_channel(shared_gated[0].engine) as channel:
        yield channel
