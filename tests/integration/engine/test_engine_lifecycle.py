from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from octavo.errors import STATUS_METADATA_KEY
from octavo.v1 import admin_pb2, admin_pb2_grpc, engine_pb2, engine_pb2_grpc, types_pb2
from support.engine_process import FAKE_CORE_ENGINE, FREE_PORTS, EngineProcess, Gate, running_engine
from support.fake_core import POISON, expected_tokens
from support.link_client import LinkClient, a_submit, open_link
from support.quiet_stream import quiet_stream_lasts
from support.shared_engine import Addresses

if TYPE_CHECKING:
    Stub = engine_pb2_grpc.EngineServiceAsyncStub

ENDLESS = 4000
READINESS = "octavo.v1.EngineService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(engine: EngineProcess, service: str, address: str | None = None) -> int:
    stub = health_pb2_grpc.HealthStub(engine.channel(address))
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def reason_of(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata() or ())[STATUS_METADATA_KEY]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info.reason


def generate(prompt: list[int], max_tokens: int = 4, **fields: object) -> engine_pb2.EngineServiceGenerateRequest:
    return engine_pb2.EngineServiceGenerateRequest(submit=a_submit(0, prompt, max_tokens, **fields))


async def test_a_killed_core_ends_every_request_with_an_error_and_the_process_with_70(
    gated_engine: EngineProcess, gate: Gate
) -> None:
    async with open_link(gated_engine.stub()) as link:
        await link.submit(a_submit(1, max_tokens=ENDLESS))
        await link.submit(a_submit(2, max_tokens=ENDLESS))
        gate.let_pass(2)
        await link.until(lambda: link.tokens[1, 0])

        os.kill(gated_engine.core_pid, signal.SIGKILL)

        for stream_id in (1, 2):
            end = await link.ended(stream_id)
            assert end.reason == types_pb2.FINISH_REASON_ERROR
            assert end.error == "engine_core_failed"
        assert await link.broken() is None
    assert await gated_engine.wait() == 70


async def test_a_core_that_keeps_failing_is_given_up(engine: EngineProcess) -> None:
    async with open_link(engine.stub()) as link:
        for stream_id in range(1, 4):
            await link.submit(a_submit(stream_id, prompt=[POISON]))
            await link.ended(stream_id)

    assert await engine.wait() == 70
    assert not [line for line in engine.lines if "secret" in str(line.get("message"))]


async def test_sigterm_lets_running_requests_end_and_refuses_new_ones(gated_engine: EngineProcess, gate: Gate) -> None:
    stub = gated_engine.stub()
    async with open_link(stub) as link:
        await link.submit(a_submit(1, max_tokens=6))
        gate.let_pass(2)
        await link.until(lambda: link.tokens[1, 0])

        gated_engine.process.send_signal(signal.SIGTERM)
        await link.next("heartbeat", lambda m: m.heartbeat.load.draining)
        assert await health(gated_engine, READINESS) == NOT_SERVING
        assert await health(gated_engine, "") == SERVING
        await link.submit(a_submit(2))
        rejected = await link.rejected()
        gate.let_pass(10)
        end = await link.ended(1)

        assert (rejected.code, rejected.reason) == (grpc.StatusCode.UNAVAILABLE.value[0], "draining")
        assert end.reason == types_pb2.FINISH_REASON_LENGTH
        assert link.tokens[1, 0] == expected_tokens([11, 12, 13], 6)
        assert await link.broken() is None
    assert await gated_engine.wait() == 0


async def test_idle_engine_that_stops_refuses_what_comes_while_it_says_so(gated_engine: EngineProcess) -> None:
    async with open_link(gated_engine.stub()) as link:
        gated_engine.process.send_signal(signal.SIGTERM)
        await link.next("heartbeat", lambda m: m.heartbeat.load.draining)
        await link.submit(a_submit(1))
        assert (await link.rejected()).reason == "draining"
        assert await link.broken() is None
    assert await gated_engine.wait() == 0


async def test_when_the_grace_is_over_requests_are_handed_off() -> None:
    async with running_engine("--drain-grace-s", "0") as engine, open_link(engine.stub()) as link:
        await link.submit(a_submit(1, max_tokens=ENDLESS))
        await link.credit(1, 10)
        await link.until(lambda: link.tokens[1, 0])

        engine.process.send_signal(signal.SIGTERM)

        assert (await link.ended(1)).reason == types_pb2.FINISH_REASON_HANDOFF
        assert await engine.wait() == 0


async def test_a_second_signal_does_not_wait_for_the_grace(gated_engine: EngineProcess, gate: Gate) -> None:
    async with open_link(gated_engine.stub()) as link:
        await link.submit(a_submit(1, max_tokens=ENDLESS))
        gate.let_pass()
        await link.until(lambda: link.tokens[1, 0])
        gated_engine.process.send_signal(signal.SIGTERM)
        await gated_engine.logged("engine_draining")

        gated_engine.process.send_signal(signal.SIGTERM)

        assert (await link.ended(1)).reason == types_pb2.FINISH_REASON_HANDOFF, "even with its core in a long step"
    assert await gated_engine.wait() == 0


async def test_health_answers_while_the_model_loads(tmp_path: Path) -> None:
    load = Gate(tmp_path / "load")
    engine = await EngineProcess.start(env={"OCTAVO_FAKE_LOAD_GATE": str(load.path)})
    try:
        bound = (await engine.logged("engine_bound"))["address"]
        await engine.logged("model_loading", stage="load weights")
        assert await health(engine, READINESS, bound) == NOT_SERVING
        assert await health(engine, "", bound) == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await engine.stub(bound).Describe(engine_pb2.DescribeRequest())
        assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.UNAVAILABLE, "model_loading")

        load.let_pass()
        await engine.serving()

        assert await health(engine, READINESS) == SERVING
    finally:
        load.close()
        await engine.close()


async def test_health_answers_while_a_step_runs_and_a_stalled_core_is_not_ready(gate: Gate) -> None:
    env = {"OCTAVO_FAKE_STEP_GATE": str(gate.path)}
    async with running_engine("--stall-s", "0.1", env=env) as engine, open_link(engine.stub()) as link:
        await link.submit(a_submit())

        await engine.logged("engine_not_ready", reason="stalled")
        assert await health(engine, READINESS) == NOT_SERVING

        gate.let_pass(100)
        await link.ended()
        await engine.logged("engine_ready_again")
        assert await health(engine, READINESS) == SERVING


async def test_the_core_does_not_outlive_a_killed_front(gated_engine: EngineProcess) -> None:
    core = os.pidfd_open(gated_engine.core_pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(core, gone.set)  # a pidfd can be read when its process has ended

    async with open_link(gated_engine.stub()) as link:
        await link.submit(a_submit(max_tokens=ENDLESS))
        await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 1)
        gated_engine.process.kill()
        await asyncio.wait_for(gone.wait(), 10)

    asyncio.get_running_loop().remove_reader(core)
    os.close(core)


async def test_admin_drain_answers_with_counts_and_the_engine_stays_to_be_looked_at(engine: EngineProcess) -> None:
    async with open_link(engine.stub()) as link:
        await link.submit(a_submit(1, max_tokens=ENDLESS))
        await link.credit(1, 10)
        await link.until(lambda: link.tokens[1, 0])

        answer = await engine.admin().Drain(admin_pb2.DrainRequest(grace_ms=1))

        assert (answer.num_finished, answer.num_handed_over) == (0, 1)
        assert (await link.ended(1)).reason == types_pb2.FINISH_REASON_HANDOFF
        described = await engine.stub().Describe(engine_pb2.DescribeRequest())
        assert described.load.draining


async def test_admin_flush_drops_the_cached_pages_and_an_engine_knows_no_others(
    shared: Addresses, stub: Stub, link: LinkClient
) -> None:
    await link.submit(a_submit(1, prompt=list(range(100, 164))))
    await link.ended()
    async with grpc.aio.insecure_channel(shared.admin) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)

        first = await admin.FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest())
        second = await admin.FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest())

        assert first.num_pages >= 4
        assert second.num_pages == 0
        assert (await stub.Describe(engine_pb2.DescribeRequest())).load.pages_cached == 0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin.ListEngines(admin_pb2.ListEnginesRequest())
        assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.UNIMPLEMENTED, "not_a_router")


async def test_direct_generate_streams_tokens_and_an_end(stub: Stub) -> None:
    answers = [answer async for answer in stub.Generate(generate([21, 22], 30))]

    tokens = [token for answer in answers for token in answer.tokens.token_ids]
    assert tokens == expected_tokens([21, 22], 30)
    assert answers[-1].end.reason == types_pb2.FINISH_REASON_LENGTH


async def test_direct_generate_refuses_with_details(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub.Generate(generate([])):
            pass
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == "empty_prompt"


@pytest.mark.parametrize("method", ["Generate", "Describe", "Link"])
async def test_bytes_that_are_no_message_are_the_callers_fault(shared: Addresses, method: str) -> None:
    async with grpc.aio.insecure_channel(shared.engine) as channel:
        call = channel.stream_stream(f"/octavo.v1.EngineService/{method}")()
        await call.write(b"\xff\xff\xff")
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value) == "malformed_message"


async def test_a_direct_caller_that_goes_away_cancels_its_request(stub: Stub, link: LinkClient) -> None:
    call = stub.Generate(generate([21], ENDLESS))
    await call.read()
    call.cancel()

    beat = await link.next("heartbeat", lambda m: m.heartbeat.num_requests == 0)
    assert beat.heartbeat.load.pages_in_use == 0


async def test_reflection_lists_the_services(shared: Addresses) -> None:
    async with grpc.aio.insecure_channel(shared.engine) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()

    names = {service.name for service in answer.list_services_response.service}
    assert {READINESS, "grpc.health.v1.Health"} <= names


def test_a_wrong_setting_stops_the_process_with_78() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo_engine", "--max-sequence", "3"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 78
    assert done.stderr == "octavo-engine: flag:--max-sequence: no such setting\n"


def test_an_address_in_use_stops_the_process_with_78(shared: Addresses) -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE_CORE_ENGINE), *FREE_PORTS, "--listen", shared.engine],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 78
    assert shared.engine in done.stderr


def test_a_model_that_cannot_be_served_stops_the_process_with_78_and_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo_engine", *FREE_PORTS, "--model", "/nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 78
    assert done.stderr.startswith('octavo-engine: model: no model "/nowhere"')
    assert "Traceback" not in done.stdout + done.stderr


async def test_a_core_that_cannot_load_stops_the_process_with_70() -> None:
    engine = await EngineProcess.start("--model", "unloadable")
    try:
        assert (await engine.logged("engine_core_failed"))["reason"] == "model_load_failed"
        assert await engine.wait() == 70
    finally:
        await engine.close()


def test_the_front_process_imports_no_torch() -> None:
    code = "import sys, octavo_engine.__main__; print(sorted({'torch', 'triton', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


async def test_the_ready_file_tells_the_addresses_and_the_end_of_standard_input_stops_the_engine(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ready.json"
    async with running_engine("--ready-file", str(path)) as engine:
        ready = json.loads(path.read_text(encoding="utf-8"))
        assert engine.process.stdin is not None
        engine.process.stdin.close()
        assert await engine.wait() == 0

    assert ready["address"] == engine.address
    assert ready["pid"] == engine.process.pid
    assert set(ready) == {"address", "admin_address", "metrics_address", "pid"}


async def test_sigterm_does_not_wait_behind_an_admin_drain() -> None:
    async with running_engine("--drain-grace-s", "0") as engine, open_link(engine.stub()) as link:
        await link.submit(a_submit(1, max_tokens=ENDLESS))
        await link.credit(1, 10)
        await link.until(lambda: link.tokens[1, 0])
        drain = engine.admin().Drain(admin_pb2.DrainRequest(grace_ms=3_600_000))
        await engine.logged("engine_draining")

        engine.process.send_signal(signal.SIGTERM)

        assert (await link.ended(1)).reason == types_pb2.FINISH_REASON_HANDOFF
        assert (await drain).num_handed_over == 1
        assert await engine.wait() == 0


async def test_an_engine_that_is_told_to_drain_while_it_loads_takes_nothing(tmp_path: Path) -> None:
    load = Gate(tmp_path / "load")
    engine = await EngineProcess.start(env={"OCTAVO_FAKE_LOAD_GATE": str(load.path)})
    try:
        admin_address = (await engine.logged("engine_bound"))["admin_address"]
        await engine.logged("model_loading", stage="load weights")
        admin = admin_pb2_grpc.AdminServiceStub(engine.channel(admin_address))
        await admin.Drain(admin_pb2.DrainRequest())
        load.let_pass()
        await engine.serving()

        async with open_link(engine.stub()) as link:
            await link.submit(a_submit(1))
            assert (await link.rejected()).reason == "draining"
        assert await health(engine, READINESS) == NOT_SERVING
    finally:
        load.close()
        await engine.close()


async def test_an_engine_without_prefix_caching_reuses_nothing_and_says_so() -> None:
    async with running_engine("--no-prefix-caching") as engine, open_link(engine.stub()) as link:
        prompt = list(range(100, 164))
        await link.submit(a_submit(1, prompt))
        await link.ended(1)
        await link.submit(a_submit(2, prompt))

        assert (await link.ended(2)).usage.cached_tokens == 0
        assert link.messages[0].welcome.engine.page_hash_root == b""
        assert not (await engine.stub().PageSnapshot(engine_pb2.PageSnapshotRequest())).hashes


async def test_routers_that_ping_while_they_wait_are_left_alone(gated_engine: EngineProcess) -> None:
    assert await quiet_stream_lasts(gated_engine.address)
