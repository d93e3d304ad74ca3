from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from octavo_client.stack import LocalStack, StackFailed
from octavo_client.stack_options import StackOptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from support import supervising
from support.supervising import TINY


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    """Two engines and a router that are tiny scripts, and no Redis."""
    return StackOptions(
        state_directory=tmp_path / "state",
        engine_command=TINY,
        router_command=TINY,
        redis_url="redis://127.0.0.1:1",
        wait_for_fleet=False,
        start_timeout_s=20,
        stop_grace_s=5,
    )


def gone(pid: int, within_s: float = 10) -> bool:
    """Wait until a process has ended, be it anybody's child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def processes_about(directory: Path) -> list[str]:
    """Return the command lines of all processes that name a directory."""
    found: list[str] = []
    for line_file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            line = line_file.read_text(errors="replace").replace("\0", " ")
            found += [line] if str(directory) in line else []
    return found


def flags_of(options: StackOptions, name: str) -> list[str]:
    flags: list[str] = started(options, name)["flags"]
    return flags


def started(options: StackOptions, name: str) -> dict[str, Any]:
    """Return what a process of the stack says of its start."""
    said: dict[str, Any] = json.loads(options.ready_file(name).read_text())
    return said


async def test_everything_starts_and_nothing_is_left(options: StackOptions) -> None:
    async with LocalStack(options) as stack:
        assert list(stack.engines) == ["engine-1", "engine-2"]
        pids = [stack.router.pid, *(ends.pid for ends in stack.engines.values())]
        assert len(set(pids)) == 3
        assert not any(gone(pid, 0) for pid in pids)
    assert all(gone(pid) for pid in pids)


async def test_each_process_gets_its_flags(options: StackOptions) -> None:
    chosen = replace(options, threads=3, otlp_endpoint="http://127.0.0.1:4317", engine_flags=("--max-sequences", "8"))
    async with LocalStack(chosen):
        engine, router = flags_of(options, "engine-2"), flags_of(options, "router")
    pairs = dict(itertools.pairwise(engine))
    assert pairs["--engine-id"] == "engine-2"
    assert (pairs["--threads"], pairs["--max-sequences"]) == ("3", "8")
    url = "redis://127.0.0.1:1"
    assert started(options, "engine-2")["redis_urls"] == {"OCTAVO_ENGINE_REDIS_URL": url}
    assert started(options, "router")["redis_urls"] == {"OCTAVO_ROUTER_REDIS_URL": url}
    assert "--otlp-endpoint" in engine
    assert "--otlp-endpoint" in router
    assert "--threads" not in router


async def test_an_embedded_redis_answers_and_goes_with_the_stack(options: StackOptions) -> None:
    async with LocalStack(replace(options, redis_url=None)) as stack:
        async with redis.asyncio.Redis.from_url(stack.redis_url, retry=Retry(NoBackoff(), 0)) as client:
            assert await client.ping()
            await stack.kill_redis()
            with pytest.raises(redis.ConnectionError):
                await client.ping()
            await stack.start_redis()
            assert await client.ping()
        socket = stack.redis_url.removeprefix("unix://")
        assert os.path.exists(socket)  # noqa: ASYNC240, PTH110  # one look
    assert not os.path.exists(socket)  # noqa: ASYNC240, PTH110  # the same


async def test_a_deep_state_directory_does_not_make_the_socket_path_too_long(
    options: StackOptions, tmp_path: Path
) -> None:
    deep = tmp_path.joinpath(*["directory"] * 12)
    async with LocalStack(replace(options, redis_url=None, state_directory=deep, num_engines=0)) as stack:
        async with redis.asyncio.Redis.from_url(stack.redis_url) as client:
            assert await client.ping()
        directory = os.path.dirname(stack.redis_url.removeprefix("unix://"))  # noqa: PTH120  # a string is enough
    assert not os.path.exists(directory)  # noqa: ASYNC240, PTH110  # one look


async def test_an_engine_that_dies_is_reported_with_its_last_words(options: StackOptions) -> None:
    async with LocalStack(options) as stack:
        os.kill(stack.engines["engine-1"].pid, signal.SIGKILL)
        ended = await asyncio.wait_for(stack.next_exit(), 10)
        assert (ended.name, ended.how) == ("engine-1", "was killed by SIGKILL")
        assert any("load weights" in line for line in ended.last_lines)
        assert list(stack.engines) == ["engine-2"]
        await stack.restart("engine-1")
        assert list(stack.engines) == ["engine-1", "engine-2"]


async def test_what_is_stopped_on_purpose_is_not_reported(options: StackOptions) -> None:
    async with LocalStack(options) as stack:
        killed = stack.engines["engine-1"].pid
        await stack.kill_engine(1)
        assert gone(killed)
        ended = await stack.stop_engine(2)
        assert ended is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stack.next_exit(), 0.1)


async def test_a_router_comes_back_at_its_address(options: StackOptions) -> None:
    async with LocalStack(options) as stack:
        before = stack.router
        await stack.kill_router()
        after = await stack.start_router()
        assert after.address == before.address
        assert after.pid != before.pid


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(options: StackOptions) -> None:
    started = time.monotonic()
    async with LocalStack(replace(options, engine_flags=("--deaf",), stop_grace_s=0.3)) as stack:
        pids = [ends.pid for ends in stack.engines.values()]
    assert all(gone(pid, 0) for pid in pids)
    assert time.monotonic() - started > 0.3


async def test_a_frozen_child_is_killed_after_the_grace(options: StackOptions) -> None:
    async with LocalStack(replace(options, stop_grace_s=0.3)) as stack:
        frozen = stack.engines["engine-1"].pid
        stack.pause_engine(1)
    assert gone(frozen, 0)


async def test_grandchildren_go_with_their_group(options: StackOptions) -> None:
    async with LocalStack(replace(options, engine_flags=("--grandchild",))) as stack:
        grandchildren = [ends.pid for ends in stack.engines.values()]  # the script reports those
        await stack.kill_engine(1)
        assert gone(grandchildren[0])
    assert gone(grandchildren[1])


async def test_a_start_that_fails_says_why_and_leaves_nothing(options: StackOptions) -> None:
    stack = LocalStack(replace(options, engine_flags=("--die", "78")))
    with pytest.raises(StackFailed, match=r"(?s)engine-\d ended with status 78 before it was ready.*last words"):
        await stack.__aenter__()
    assert stack.engines == {}
    assert processes_about(options.state_directory) == []


async def test_a_start_that_takes_too_long_is_given_up(options: StackOptions) -> None:
    with pytest.raises(StackFailed, match=r"not ready after 1 s.*logs"):
        await LocalStack(replace(options, router_flags=("--never-ready",), start_timeout_s=1)).__aenter__()


async def test_a_start_that_is_cancelled_leaves_nothing(options: StackOptions) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    stack = LocalStack(replace(options, router_flags=("--never-ready",)), told.put_nowait)
    start = asyncio.create_task(stack.__aenter__())
    while "engine-1 is ready" not in await asyncio.wait_for(told.get(), 10):
        pass
    pid = stack.engines["engine-1"].pid
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert gone(pid, 0)


async def test_loading_is_told(options: StackOptions) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    start = asyncio.create_task(
        LocalStack(replace(options, router_flags=("--never-ready",)), told.put_nowait).__aenter__()
    )
    while await asyncio.wait_for(told.get(), 10) != "router: load weights, 50 %":
        pass
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start


def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, supervising.__file__, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        told = json.loads(supervisor.stdout.readline())
        redis_log = tmp_path / "logs" / "redis.jsonl"
        redis_pid = int(redis_log.read_text().split(":", 1)[0])
        supervisor.kill()
        supervisor.wait()
        assert all(gone(pid) for pid in [*told["pids"], redis_pid])
