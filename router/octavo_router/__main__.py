"""The `octavo-router` command: read the configuration, serve, drain on the first signal, stop at once on the second."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import structlog
from octavo.logs import configure_logs
from octavo.model_directory import ModelNotFound

from octavo_router.config import EXIT_CONFIG, ConfigError, RouterConfig, load_config
from octavo_router.server import Bound, ListenError, RouterServer

_log = structlog.get_logger("octavo.router")


def main() -> None:
    """Run a router until it is told to stop; exit with 78 if its configuration is wrong."""
    try:
        config = load_config(sys.argv[1:], os.environ)
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"octavo-router: {problem}\n")
        raise SystemExit(EXIT_CONFIG) from None
    configure_logs(level=config.log_level, form=config.log_form)
    try:
        _run(config)
    except ModelNotFound as error:
        sys.stderr.write(f"octavo-router: model: {error}\n")
        raise SystemExit(EXIT_CONFIG) from None
    except ListenError as error:
        sys.stderr.write(f"octavo-router: {error}\n")
        raise SystemExit(1) from None


def _run(config: RouterConfig) -> None:
    try:
        import uvloop  # noqa: PLC0415  # faster, but not there on every platform
    except ImportError:
        asyncio.run(_serve(config))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config))


async def _serve(config: RouterConfig) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    server = RouterServer(config)
    try:
        bound = await server.start()
        if config.ready_file is not None:
            _write_ready(config.ready_file, bound)
        _log.info("router_serves", router_id=config.router_id, **asdict(bound))
        if config.exit_with_stdin:
            _watch_stdin(loop, stop)
        await stop.wait()
        _log.info("router_drains", num_in_flight=server.admission.num_in_flight)
        await _drain(server, hurry)
    finally:
        await server.stop()


async def _drain(server: RouterServer, hurry: asyncio.Event) -> None:
    drained = asyncio.create_task(server.drain())
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    for task in (drained, hurried):
        task.cancel()
    await asyncio.gather(drained, hurried, return_exceptions=True)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stop when standard input ends. A thread, because standard input may be a file, which no event loop can watch."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 4096):
                pass
        with suppress(RuntimeError):  # the loop is gone already
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _write_ready(path: Path, bound: Bound) -> None:
    """Write the bound addresses; a reader sees the whole file or none."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({**asdict(bound), "pid": os.getpid()}), encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    main()
