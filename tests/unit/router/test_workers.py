from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys

import pytest
from octavo.serving import ListenError
from octavo_router import workers
from octavo_router.workers import Worker, WorkerFailed

SERVE = """
import json, os, pathlib, signal, sys
path = pathlib.Path(sys.argv[1])
ready = {"pid": os.getpid(), "address": "127.0.0.1:1", "admin_address": "127.0.0.1:1", "metrics_address": "127.0.0.1:1"}
path.with_suffix(".new").write_text(json.dumps(ready))
path.with_suffix(".new").rename(path)
signal.pause()
"""


def worker(tmp_path, script=SERVE):
    ready_file = tmp_path / "0.json"
    return Worker(0, [sys.executable, "-S", "-c", script, str(ready_file)], ready_file)


async def pid_other_than(tmp_path, known):
    """Return the pid in the ready file once it is another one; the file is gone while a process starts."""
    async with asyncio.timeout(20):
        while True:
            await asyncio.sleep(0.01)
            path = tmp_path / "0.json"
            if path.exists() and (pid := json.loads(path.read_text())["pid"]) != known:
                return pid


async def test_worker_that_dies_is_started_again_until_it_is_stopped(tmp_path):
    kept = worker(tmp_path)
    keeper = asyncio.create_task(kept.keep())
    await asyncio.wait_for(kept.served.wait(), 20)
    first = kept.addresses["pid"]
    os.kill(first, signal.SIGKILL)
    assert await pid_other_than(tmp_path, first) != first
    kept.stop()
    await asyncio.wait_for(keeper, 20)


async def test_worker_that_hangs_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_WATCH_PERIOD_S", 0.01)
    kept = worker(tmp_path)  # nobody listens at its admin address
    keeper = asyncio.create_task(kept.keep())
    await asyncio.wait_for(kept.served.wait(), 20)
    first = kept.addresses["pid"]
    assert await pid_other_than(tmp_path, first) != first
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)


async def test_worker_that_never_serves_fails_with_its_status(tmp_path):
    with pytest.raises(WorkerFailed) as caught:
        await asyncio.wait_for(worker(tmp_path, "raise SystemExit(78)").keep(), 20)
    assert caught.value.status == 78


async def test_cancelled_keeper_leaves_no_process(tmp_path):
    kept = worker(tmp_path)
    keeper = asyncio.create_task(kept.keep())
    await asyncio.wait_for(kept.served.wait(), 20)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(kept.addresses["pid"], 0)


def test_reserved_port_can_be_shared_and_is_not_listened_at():
    with workers._reserved("127.0.0.1:0") as address, socket.socket() as other:
        host, port = address.split(":")
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((host, int(port)))
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((host, int(port)))


def test_address_in_use_is_a_listen_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=address), workers._reserved(address):
            pass
