"""Redis, engines and routers as real processes, each engine behind a proxy whose network can be broken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import grpc
import redis.asyncio as aioredis
from octavo.v1 import admin_pb2, admin_pb2_grpc, engine_pb2, engine_pb2_grpc, inference_pb2_grpc
from octavo_client import redis_server
from octavo_client.child import Child
from octavo_client.stack_options import Endpoints, read_endpoints
from support.fault_proxy import FaultProxy

NUM_ENGINES: Final = 3
NUM_ROUTERS: Final = 2
NUM_PAGES: Final = 192
START_S: Final = 60.0
_POLL_S: Final = 0.05
_FREE_PORTS = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
ENGINE_COMMANDS: Final = {
    "arithmetic": (sys.executable, str(Path(__file__).with_name("paced_engine.py"))),
    "tiny": (sys.executable, "-P", "-m", "octavo_engine"),
}
"""By what computes the tokens: arithmetic, which costs next to nothing, or a tiny model in torch."""
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Server:
    """A process of Octavo's, restarted under the same name."""

    def __init__(self, name: str, line: list[str], directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._line = [*line, "--log-form", "json", "--exit-with-stdin"]
        self._child: Child | None = None
        self._endpoints: Endpoints | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def child(self) -> Child:
        assert self._child is not None, f"{self.name} was never started"
        return self._child

    @property
    def at(self) -> Endpoints:
        assert self._endpoints is not None, f"{self.name} is not ready"
        return self._endpoints

    async def start(self) -> None:
        """Start it, and return when it serves."""
        ready_file = self.directory / f"{self.name}.ready.json"
        ready_file.unlink(missing_ok=True)
        self._child = await Child.start(
            self.name,
            [*self._line, "--ready-file", str(ready_file)],
            log_file=self.directory / f"{self.name}.jsonl",
            environment=os.environ | _ENVIRONMENT,
        )
        async with asyncio.timeout(START_S):
            while (endpoints := read_endpoints(ready_file)) is None:
                assert self._child.running, f"{self.name} did not start: {self._child.last_lines()}"
                await asyncio.sleep(_POLL_S)
        self._endpoints = endpoints

    async def kill(self) -> None:
        await self._close_channels()
        if self._child is not None:
            await self._child.kill()

    async def stop(self, grace_s: float) -> int:
        """Send SIGTERM; return the exit status."""
        await self._close_channels()
        return (await self.child.stop(grace_s)).status

    def channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        return self._channels[address]

    async def _close_channels(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


class ChaosEngine(Server):
    """An engine that routers reach through its proxy alone; the test also reaches it directly."""

    def __init__(self, number: int, line: list[str], directory: Path, proxy: FaultProxy) -> None:
        name = f"engine-{number}"
        super().__init__(name, [*line, "--engine-id", name, "--advertise", proxy.address], directory)
        self.proxy = proxy
        self.address = ""

    async def start(self) -> None:
        self.proxy.upstream = None
        await super().start()
        bound = [json.loads(line) for line in self.child.log_file.read_text().splitlines() if "engine_bound" in line]
        self.address = self.proxy.upstream = bound[-1]["address"]  # the ready file has what is advertised

    def signal_core(self, number: signal.Signals) -> None:
        """Signal the core process alone."""
        front = self.child.pid
        children = Path(f"/proc/{front}/task/{front}/children").read_text(encoding="ascii")
        os.kill(int(children.split()[0]), number)

    async def describe(self) -> engine_pb2.DescribeResponse:
        stub: Any = engine_pb2_grpc.EngineServiceStub(self.channel(self.address))
        answer: engine_pb2.DescribeResponse = await stub.Describe(engine_pb2.DescribeRequest(), timeout=START_S)
        return answer

    async def busy(self) -> None:
        """Wait until a request runs there."""

        async def is_busy() -> bool:
            return (await self.describe()).load.num_running > 0

        await until(is_busy)


class Redis:
    """An embedded Redis-compatible server."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "redis.sock"
        self._directory = directory
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return redis_server.server_url(self._socket)

    async def start(self) -> None:
        """Start it, empty."""
        self._socket.unlink(missing_ok=True)
        self.child = await Child.start(
            "redis",
            redis_server.server_line(self._socket),
            log_file=self._directory / "redis.log",
            environment=os.environ,
        )
        await until(lambda: redis_server.answers(self._socket))

    async def kill(self) -> None:
        if self.child is not None:
            await self.child.kill()

    async def flush(self) -> None:
        client = aioredis.Redis(unix_socket_path=str(self._socket))
        try:
            await client.flushall()
        finally:
            await client.aclose()


class Fleet:
    """Three engines, two routers, one Redis. Leaving the context kills everything, also what is stopped."""

    def __init__(self, directory: Path, model: Path, *, computes: str) -> None:
        self.directory = directory
        self._engine_command = ENGINE_COMMANDS[computes]
        self.redis = Redis(directory)
        self.engines: dict[int, ChaosEngine] = {}
        self.routers: list[Server] = []
        self._model = model
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self._stack.push_async_callback(self.redis.kill)
        for number in range(1, NUM_ENGINES + 1):
            proxy = await self._stack.enter_async_context(FaultProxy())
            self.engines[number] = ChaosEngine(number, self._engine_line(), self.directory, proxy)
            self._stack.push_async_callback(self.engines[number].kill)
        for number in range(1, NUM_ROUTERS + 1):
            line = self.router_line(f"router-{number}", redis_url=self.redis.url)
            self.routers.append(Server(f"router-{number}", line, self.directory))
            self._stack.push_async_callback(self.routers[-1].kill)
        try:
            await self.redis.start()
            await asyncio.gather(*(server.start() for server in (*self.routers, *self.engines.values())))
            await self.whole()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def inference(self) -> list[Any]:
        """Return a stub of each router."""
        return [inference_pb2_grpc.InferenceServiceStub(router.channel(router.at.address)) for router in self.routers]

    async def states(self, router: Server) -> dict[str, str]:
        """Return how far a router can rely on each engine."""
        stub: Any = admin_pb2_grpc.AdminServiceStub(router.channel(router.at.admin_address))
        answer = await stub.ListEngines(admin_pb2.ListEnginesRequest(), timeout=START_S)
        return {status.engine.engine_id: status.state for status in answer.engines}

    async def whole(self) -> None:
        """Wait until every router can send to every engine."""
        for router in self.routers:
            await self.sees_all(router)

    async def sees_all(self, router: Server) -> None:
        """Wait until a router can send to every engine."""
        expected = {engine.name: "serving" for engine in self.engines.values()}

        async def does() -> bool:
            return await self.states(router) == expected

        await until(does)

    async def idle(self) -> dict[str, engine_pb2.DescribeResponse]:
        """Wait until the engines hold no request, and return what they then say of themselves."""
        answers: dict[str, engine_pb2.DescribeResponse] = {}

        async def is_idle() -> bool:
            for engine in self.engines.values():
                answers[engine.name] = await engine.describe()
            loads = [answer.load for answer in answers.values()]
            return not any(load.num_running or load.num_waiting or load.pages_in_use for load in loads)

        with suppress(TimeoutError):  # the checker says what is left
            await until(is_idle, timeout_s=20.0)
        return answers

    def router_line(self, name: str, *, redis_url: str) -> list[str]:
        """Return the command line of a router."""
        line = [sys.executable, "-P", "-m", "octavo_router", *_FREE_PORTS, "--model", str(self._model)]
        return [*line, "--redis-url", redis_url, "--router-id", name]

    def tails(self) -> str:
        """Return the end of every log but for the requests, for a failed test."""
        tails = []
        for server in (*self.routers, *self.engines.values()):
            lines = [line for line in server.child.last_lines(200) if "request_finished" not in line]
            tails += [f"--- {server.name}", *lines[-8:]]
        return "\n".join(tails)

    def _engine_line(self) -> list[str]:
        line = [*self._engine_command, *_FREE_PORTS, "--model", str(self._model)]
        line += ["--redis-url", self.redis.url, "--threads", "1", "--num-pages", str(NUM_PAGES)]
        return [*line, "--device", "cpu", "--dtype", "float32", "--drain-grace-s", "0.05"]


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = START_S) -> None:
    """Wait for a state that processes reach without telling anybody."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110 - a process tells nobody in this one
            await asyncio.sleep(_POLL_S)
