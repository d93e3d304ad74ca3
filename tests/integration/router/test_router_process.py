from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager

import grpc
import pytest
from octavo.serving import ListenError
from octavo.v1 import inference_pb2_grpc
from octavo_router.__main__ import main
from octavo_router.config import RouterConfig
from octavo_router.server import RouterServer
from support.router_client import Answer, request


@asynccontextmanager
async def router_process(model_directory, tmp_path, *flags, stdin=asyncio.subprocess.DEVNULL):
    """Start `octavo-router` and wait until it serves; yield the process and its ready file."""
    ready = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "octavo_router",
        "--model", str(model_directory), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
        "--metrics-listen", "127.0.0.1:0", "--ready-file", str(ready), "--log-form", "json", *flags,
        stdin=stdin, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            await line_with(process, "router_serves")
        yield process, json.loads(ready.read_text())
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process, event):
    while line := await process.stdout.readline():
        entry = json.loads(line)
        if entry["event"] == event:
            return entry
    pytest.fail(f"the process ended without {event}")


async def test_process_serves_and_drains_on_sigterm(model_directory, tmp_path, new_engine):
    engine = await new_engine("e1")
    engine.hold_at = 2
    async with router_process(model_directory, tmp_path, "--engines", engine.address) as (process, ready):
        assert ready["pid"] == process.pid
        assert ready.keys() == {"address", "admin_address", "metrics_address", "pid"}
        await line_with(process, "engine_joined")
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(request(max_tokens=4), timeout=20)
            answer = Answer()
            answer.add(await call.read())
            process.send_signal(signal.SIGTERM)
            await line_with(process, "router_drains")
            engine.release()
            while (response := await call.read()) is not grpc.aio.EOF:
                answer.add(response)
        assert len(answer.token_ids[0]) == 4
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_second_signal_stops_at_once(model_directory, tmp_path, new_engine):
    engine = await new_engine("e1")
    engine.hold_at = 2
    async with router_process(model_directory, tmp_path, "--engines", engine.address) as (process, ready):
        await line_with(process, "engine_joined")
        async with grpc.aio.insecure_channel(ready["address"]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(request(max_tokens=4), timeout=20)
            await call.read()
            process.send_signal(signal.SIGTERM)
            await line_with(process, "router_drains")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        await engine.until(lambda: engine.num_links == 0)


async def test_process_ends_with_its_standard_input(model_directory, tmp_path):
    flags = ("--exit-with-stdin",)
    async with router_process(model_directory, tmp_path, *flags, stdin=asyncio.subprocess.PIPE) as (process, _):
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--max-in-flght", "3"), "flag:--max-in-flght: no such setting"),
        (("--max-in-flight", "0"), "flag:--max-in-flight: "),
        (("--model", "/nowhere"), "model: "),
    ],
)
def test_wrong_configuration_exits_with_78(flags, problem, monkeypatch, capsys):
    monkeypatch.setattr("octavo_router.__main__.configure_logs", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["octavo-router", *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 78
    assert problem in capsys.readouterr().err


async def test_address_in_use_is_a_listen_error_and_nothing_is_left_open(model_directory, new_router):
    taken = (await new_router()).router.bound.address
    config = RouterConfig(
        model=str(model_directory), listen=taken, admin_listen="127.0.0.1:0", metrics_listen="127.0.0.1:0"
    )
    router = RouterServer(config)
    with pytest.raises(ListenError, match=taken):
        await router.start()
    await router.stop()
