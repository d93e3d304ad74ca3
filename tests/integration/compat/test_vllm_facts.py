from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest
from octavo.v1 import admin_pb2
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2
from support.engine_process import EngineProcess, Gate, running_engine
from support.vllm_client import a_request, answer_to, begun, rest_of, vllm_stub


async def test_model_info_tells_what_a_gateway_needs(vllm: Any, model_directory: Path) -> None:
    info = await vllm.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())

    assert (info.served_model_name, info.model_path) == ("fake", str(model_directory))
    assert (info.max_context_length, info.vocab_size, list(info.eos_token_ids)) == (4096, 1000, [0])
    assert (info.model_type, list(info.architectures), info.bos_token_id) == ("llama", ["LlamaForCausalLM"], 1)
    assert info.is_generation


async def test_server_info_tells_the_page_size(vllm: Any) -> None:
    info = await vllm.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest())

    assert (info.block_size, info.data_parallel_size, info.max_num_seqs) == (16, 1, 256)
    assert info.server_type == "vllm-grpc"


async def test_loads_show_a_request_that_runs(gated: grpc.aio.Channel, steps: Gate) -> None:
    vllm = vllm_stub(gated)
    call, answer = await begun(vllm, steps, a_request(list(range(100, 140)), max_tokens=100))

    (load,) = (await vllm.GetLoads(vllm_engine_pb2.GetLoadsRequest())).loads
    steps.let_pass(200)
    await rest_of(call, answer)

    assert (load.num_running_reqs, load.num_waiting_reqs) == (1, 0)
    assert load.num_used_tokens >= 40
    assert load.token_usage == pytest.approx(load.num_used_tokens / load.max_total_num_tokens)
    assert load.gen_throughput > 0


async def test_the_tokenizer_comes_without_the_weights(vllm: Any) -> None:
    chunks = [chunk async for chunk in vllm.GetTokenizer(common_pb2.GetTokenizerRequest())]

    content = b"".join(chunk.data for chunk in chunks)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    assert sorted(names) == ["config.json", "tokenizer.json"]
    assert chunks[-1].sha256 == hashlib.sha256(content).hexdigest()


async def test_an_engine_that_serves_is_healthy_until_it_drains() -> None:
    async with running_engine("--vllm-service") as engine:
        vllm = vllm_stub(engine.channel())
        serving = await vllm.HealthCheck(vllm_engine_pb2.HealthCheckRequest())
        await engine.admin().Drain(admin_pb2.DrainRequest())
        drained = await vllm.HealthCheck(vllm_engine_pb2.HealthCheckRequest())

    assert (serving.healthy, drained.healthy) == (True, False)
    assert "draining" in drained.message


async def test_a_loading_engine_is_not_healthy_and_says_so(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "load")
    engine = await EngineProcess.start("--vllm-service", env={"OCTAVO_FAKE_LOAD_GATE": str(gate.path)})
    try:
        bound = await engine.logged("engine_bound")
        vllm = vllm_stub(engine.channel(bound["address"]))
        assert not (await vllm.HealthCheck(vllm_engine_pb2.HealthCheckRequest())).healthy
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await vllm.GetModelInfo(vllm_engine_pb2.GetModelInfoRequest())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        gate.let_pass()
        await engine.close()
        gate.close()


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("Embed", vllm_engine_pb2.EmbedRequest),
        ("StartProfile", common_pb2.StartProfileRequest),
        ("StopProfile", common_pb2.StopProfileRequest),
    ],
)
async def test_what_engines_do_not_have_is_unimplemented(vllm: Any, method: str, request_of: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(vllm, method)(request_of())

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_service_is_off_by_default() -> None:
    async with running_engine() as engine:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answer_to(vllm_stub(engine.channel()), a_request())

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_without_its_package_the_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "smg_grpc_proto.py").write_text("raise ImportError")
    engine = await EngineProcess.start("--vllm-service", env={"PYTHONPATH": str(tmp_path)})
    try:
        assert await engine.wait() == 78
    finally:
        await engine.close()
