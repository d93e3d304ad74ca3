"""A whole Octavo on this machine: an embedded Redis server, engines and a router, each a real process of its own.

    async with LocalStack(StackOptions(state_directory=Path("/tmp/octavo"))) as stack:
        async with OctavoClient(stack.router.address) as client:
            ...
        await stack.kill_engine(1)   # as `kill -9` would
        await stack.start_engine(1)

Leaving the context stops everything, also what hangs; if this process is killed, the children end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from octavo.errors import OctavoError

from octavo_client import redis_server
from octavo_client.admin import AdminClient
from octavo_client.child import Child, Exit
from octavo_client.log_lines import loading_line, readable_line
from octavo_client.redis_server import REDIS
from octavo_client.stack_options import ROUTER, Endpoints, StackOptions, engine_index, engine_name, read_endpoints
from octavo_client.task_failures import one_failure

_POLL_S: Final = 0.05
_MAX_UNREAD_EXITS: Final = 64
_MAX_SOCKET_PATH: Final = 100  # bytes; the kernel takes 107

Progress = Callable[[str], None]
"""Called with a line for a person each time something changes while the stack starts or stops."""

_T = TypeVar("_T")


class StackFailed(Exception):
    """A process did not start. The message has which one, how it ended, and the end of its log."""


class LocalStack:
    """Starts, watches and stops the processes. One task uses it."""

    def __init__(self, options: StackOptions, progress: Progress | None = None) -> None:
        self.options = options
        self._progress = progress or _silent
        self._children: dict[str, Child] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._endpoints: dict[str, Endpoints] = {}
        self._exits: asyncio.Queue[Exit] = asyncio.Queue(_MAX_UNREAD_EXITS)
        self._socket: Path | None = None

    @property
    def router(self) -> Endpoints:
        """Where the router listens."""
        return self._endpoints[ROUTER]

    @property
    def engines(self) -> dict[str, Endpoints]:
        """Where the running engines listen, by engine id."""
        return {name: ends for name, ends in sorted(self._endpoints.items()) if name != ROUTER}

    @property
    def redis_url(self) -> str:
        """URL of the Redis server in use."""
        if self.options.redis_url is not None:
            return self.options.redis_url
        return redis_server.server_url(self._own_socket())

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as unless_started:
            unless_started.push_async_callback(self.stop)
            await self._start_all()
            unless_started.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop everything: the router first, so that it ends its requests, then engines, then Redis.

        Cancelling this kills at once what is left.
        """
        engines = [name for name in self._children if name not in (ROUTER, REDIS)]
        try:
            for names in ([ROUTER], engines, [REDIS]):
                children = [child for name in names if (child := self._release(name)) is not None]
                if any(child.running for child in children):
                    self._progress(f"Stopping {' and '.join(child.name for child in children)}")
                await asyncio.gather(*(child.stop(self.options.stop_grace_s) for child in children))
        finally:
            for child in self._children.values():
                child.kill_group()
            if self._socket is not None:
                _remove_socket(self._socket, self.options.state_directory)
                self._socket = None

    async def next_exit(self) -> Exit:
        """Wait for a process to end that nobody asked to end; `restart` starts it again."""
        return await self._exits.get()

    async def restart(self, name: str) -> None:
        """Start a process again after it ended.

        Raises:
            StackFailed: it does not come up.
        """
        if name == ROUTER:
            await self.start_router()
        elif name == REDIS:
            await self.start_redis()
        else:
            await self.start_engine(engine_index(name))

    async def start_engine(self, index: int) -> Endpoints:
        """Start engine `index`, from 1, again; return when it is ready."""
        return await self._in_time(self._ready(await self._spawn_engine(index)))

    async def kill_engine(self, index: int) -> None:
        """Kill engine `index` and its core process, as `kill -9` would."""
        if (child := self._release(engine_name(index))) is not None:
            await child.kill()

    async def stop_engine(self, index: int) -> Exit | None:
        """Let engine `index` drain and end; None if it was not running."""
        child = self._release(engine_name(index))
        return None if child is None else await child.stop(self.options.stop_grace_s)

    def pause_engine(self, index: int) -> None:
        """Freeze engine `index` (SIGSTOP), as a hang would."""
        self._children[engine_name(index)].pause()

    def resume_engine(self, index: int) -> None:
        """Let a frozen engine go on."""
        self._children[engine_name(index)].resume()

    async def start_router(self) -> Endpoints:
        """Start the router again, at the address that it had."""
        return await self._in_time(self._ready(await self._spawn_router()))

    async def kill_router(self) -> None:
        """Kill the router, as `kill -9` would."""
        if (child := self._release(ROUTER)) is not None:
            await child.kill()

    async def start_redis(self) -> None:
        """Start the embedded Redis server again, at the socket that it had, empty."""
        await self._in_time(self._redis_answers(await self._spawn_redis()))

    async def kill_redis(self) -> None:
        """Kill the embedded Redis server."""
        if (child := self._release(REDIS)) is not None:
            await child.kill()

    async def _start_all(self) -> None:
        options = self.options
        _clear(options)
        if options.redis_url is None:
            self._socket = _socket_path(options.state_directory)
            await self.start_redis()
        # All at once: a router serves as soon as its first engine does.
        children = [await self._spawn_router()]
        children += [await self._spawn_engine(index) for index in range(1, options.num_engines + 1)]
        with one_failure(StackFailed):
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(self._in_time(self._ready(child)))
        if options.wait_for_fleet:
            await self._in_time(self._fleet_serves(set(options.engine_names)))

    async def _in_time(self, starting: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self.options.start_timeout_s):
                return await starting
        except TimeoutError:
            limit = f"{self.options.start_timeout_s:.0f} s"
            raise StackFailed(f"not ready after {limit}; the logs are in {self.options.log_directory}") from None

    async def _ready(self, child: Child) -> Endpoints:
        """Wait until a process has written its ready file; tell about its loading meanwhile."""
        shown = ""
        while (endpoints := read_endpoints(self.options.ready_file(child.name))) is None:
            await self._must_run(child)
            line = "".join(map(loading_line, child.last_lines(1)))
            if line not in ("", shown):
                shown = line
                self._progress(f"{child.name}: {line}")
            await asyncio.sleep(_POLL_S)
        self._endpoints[child.name] = endpoints
        self._watch(child)
        self._progress(f"{child.name} is ready at {endpoints.address}")
        return endpoints

    async def _redis_answers(self, child: Child) -> None:
        while not await redis_server.answers(self._own_socket()):
            await self._must_run(child)
            await asyncio.sleep(_POLL_S)
        self._watch(child)

    async def _must_run(self, child: Child) -> None:
        if not child.running:
            self._release(child.name)
            ended = await child.wait()
            raise StackFailed(_told(ended, "before it was ready"))

    async def _fleet_serves(self, names: set[str]) -> None:
        """Wait until the router has a working link to every engine."""
        self._progress("Waiting until the router sees every engine")
        async with AdminClient(self.router.admin_address) as admin:
            while True:
                serving: set[str] = set()
                with contextlib.suppress(OctavoError):
                    serving = {engine.engine_id for engine in await admin.engines() if engine.state == "serving"}
                if names <= serving:
                    return
                if not self._exits.empty():
                    ended = self._exits.get_nowait()
                    raise StackFailed(_told(ended, "while the stack started"))
                await asyncio.sleep(_POLL_S)

    async def _spawn_redis(self) -> Child:
        try:
            line = redis_server.server_line(self._own_socket())
        except redis_server.RedisMissing as error:
            raise StackFailed(str(error)) from None
        return await self._spawn(REDIS, line, dict(self.options.environment))

    async def _spawn_router(self) -> Child:
        # A router that comes back keeps its addresses: clients know them.
        line = self.options.router_line(self._endpoints.get(ROUTER))
        return await self._spawn(ROUTER, line, self.options.router_environment(self.redis_url))

    async def _spawn_engine(self, index: int) -> Child:
        line = self.options.engine_line(index)
        return await self._spawn(engine_name(index), line, self.options.engine_environment(index, self.redis_url))

    async def _spawn(self, name: str, line: list[str], environment: dict[str, str]) -> Child:
        if name in self._children:
            raise RuntimeError(f"{name} runs already")
        self.options.ready_file(name).unlink(missing_ok=True)
        log_file = self.options.log_file(name)
        self._children[name] = await Child.start(name, line, log_file=log_file, environment=environment)
        return self._children[name]

    def _watch(self, child: Child) -> None:
        self._watchers[child.name] = asyncio.create_task(self._report_end(child), name=f"watch {child.name}")

    async def _report_end(self, child: Child) -> None:
        ended = await child.wait()
        del self._watchers[child.name]  # or _release would cancel this very task
        self._release(child.name)
        if self._exits.full():  # nobody reads: keep the newest
            self._exits.get_nowait()
        self._exits.put_nowait(ended)

    def _release(self, name: str) -> Child | None:
        """Give a child up that ended, or that is about to be stopped on purpose."""
        if (watcher := self._watchers.pop(name, None)) is not None:
            watcher.cancel()
        if name != ROUTER:
            self._endpoints.pop(name, None)
        return self._children.pop(name, None)

    def _own_socket(self) -> Path:
        if self._socket is None:
            raise RuntimeError("this stack has no embedded Redis server running")
        return self._socket


def _clear(options: StackOptions) -> None:
    """Make the state directory, without what an earlier stack left there."""
    options.log_directory.mkdir(parents=True, exist_ok=True)
    for stale in (*options.log_directory.glob("*.jsonl"), *options.state_directory.glob("*.ready.json")):
        stale.unlink()


def _socket_path(state_directory: Path) -> Path:
    """Return where the Redis socket goes: in the state directory, unless that makes its path too long."""
    path = state_directory / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    return Path(tempfile.mkdtemp(prefix="octavo-")) / "redis.sock"


def _remove_socket(socket: Path, state_directory: Path) -> None:
    socket.unlink(missing_ok=True)
    if socket.parent != state_directory:
        shutil.rmtree(socket.parent, ignore_errors=True)


def _told(ended: Exit, when: str) -> str:
    return "\n  ".join([f"{ended.name} {ended.how} {when}; the end of its log:", *map(readable_line, ended.last_lines)])


def _silent(_line: str) -> None:
    pass
