"""Starts the same engines behind one contender or the other. Each start is fresh: nothing is cached."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from octavo.v1 import engine_pb2, engine_pb2_grpc
from octavo_client import OctavoClient
from octavo_client.child import Child
from octavo_client.stack import LocalStack
from octavo_client.stack_options import StackOptions, engine_name
from pace import VARIABLE, Pace
from targets import Answer, Ask, octavo_target, openai_target

CONTENDERS: Final = ("octavo", "smg", "smg-tuned")
SMG_TUNED: Final = (
    *("--selection-accounting-ttl-ms", "1000"),  # counts what it has just sent, before the engine reports it
    *("--worker-stall-secs", "1", "--worker-wedge-secs", "1", "--worker-stale-secs", "2"),
    *("--load-monitor-interval", "1", "--health-check-interval-secs", "1", "--health-check-timeout-secs", "1"),
    *("--tokenizer-cache-enable-l0", "--tokenizer-cache-enable-l1"),
)
"""Flags of the gateway with which it notices load and silent engines sooner than by default."""
START_LIMIT_S: Final = 180.0
_TIMED_ENGINE: Final = (sys.executable, "-P", str(Path(__file__).with_name("timed_engine.py")))
_POLL_S: Final = 0.1
_WARM_UP_TOKENS: Final = 8
_FINISHED: Final = b'"event": "request_finished"'


class NotStarted(Exception):
    """A contender did not come up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What both contenders share, and what is smg's own.

    Attributes:
        model: directory, default model's name or random shape.
        pace: engines take this time for their steps instead of computing; None: they compute.
        engine_flags: added to each engine's command line.
        smg: the gateway's program.
        smg_flags: added to its command line.
    """

    model: str
    num_engines: int
    threads: int
    pace: Pace | None = None
    engine_flags: tuple[str, ...] = ()
    router_flags: tuple[str, ...] = ()
    smg: str = "smg"
    smg_flags: tuple[str, ...] = ()


@dataclass(slots=True)
class Contender:
    """A running contender.

    Attributes:
        name: which one.
        stack: its engines.
        ask: the way to ask it.
    """

    name: str
    stack: LocalStack
    ask: Ask

    async def loads(self) -> dict[int, int]:
        """Return the sequences that run in each engine, by its index."""
        running = {}
        for index in range(1, self.stack.options.num_engines + 1):
            async with grpc.aio.insecure_channel(self.stack.engines[engine_name(index)].address) as channel:
                stub = engine_pb2_grpc.EngineServiceStub(channel)
                running[index] = (await stub.Describe(engine_pb2.DescribeRequest(), timeout=5)).load.num_running
        return running

    def num_finished(self) -> dict[str, int]:
        """Return the requests that each engine's log says it has finished."""
        options = self.stack.options
        return {name: options.log_file(name).read_bytes().count(_FINISHED) for name in options.engine_names}


@asynccontextmanager
async def started(name: str, setup: Setup) -> AsyncGenerator[Contender]:
    """Start a contender, and let every engine serve a few tokens.

    Raises:
        NotStarted: it does not serve in time.
        StackFailed: an engine does not start.
    """
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as folder:
        timed = {} if setup.pace is None else {"engine_command": _TIMED_ENGINE}
        options = StackOptions(
            state_directory=Path(folder),
            model=setup.model,
            model_name="model",
            num_engines=setup.num_engines,
            threads=setup.threads,
            engine_flags=("--vllm-service", *setup.engine_flags),
            router_flags=setup.router_flags,
            start_timeout_s=START_LIMIT_S,
            environment=os.environ | ({} if setup.pace is None else {VARIABLE: str(setup.pace)}),
            **timed,
        )
        async with LocalStack(options) as stack:
            if name == "octavo":
                async with OctavoClient(stack.router.address) as client:
                    yield await _warm(Contender(name, stack, octavo_target(client)))
            else:
                await stack.kill_router()  # the engines are alone with the gateway
                tuning = SMG_TUNED if name == "smg-tuned" else ()
                async with _smg(setup, stack, Path(folder), tuning) as port:
                    yield await _warm(Contender(name, stack, openai_target(port, "model")))


@asynccontextmanager
async def _smg(setup: Setup, stack: LocalStack, folder: Path, tuning: Sequence[str]) -> AsyncGenerator[int]:
    port, metrics_port = _free_port(), _free_port()
    line = [setup.smg, "launch", "--host", "127.0.0.1", "--port", str(port), "--history-backend", "none"]
    line += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
    line += ["--worker-startup-check-interval", "1", "--policy", "cache_aware", "--log-level", "warn"]
    line += ["--worker-urls", *(f"grpc://{engine.address}" for engine in stack.engines.values())]
    line += [*tuning, *setup.smg_flags]
    child = await Child.start("smg", line, log_file=folder / "smg.log", environment=os.environ)
    try:
        yield port
    finally:
        await child.kill()


async def _warm(contender: Contender) -> Contender:
    """Ask until all of a burst of requests succeed; a burst reaches every engine."""
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while True:
                answers = [Answer() for _ in range(4 * contender.stack.options.num_engines)]
                await asyncio.gather(
                    *(
                        contender.ask(f"{number} warm-up requests", _WARM_UP_TOKENS, answer)
                        for number, answer in enumerate(answers)
                    )
                )
                if not any(answer.error for answer in answers):
                    return contender
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise NotStarted(f"{contender.name} answers no requests: {answers[0].error}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
