"""The `octavo-router` command: read the configuration, serve, drain on the first signal, stop at once on the second."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from dataclasses import asdict

import structlog
from octavo.logs import configure_logs
from octavo.model_directory import ModelNotFound
from octavo.process import StopRequest, run, tell_problems, write_ready_file
from octavo.settings import EXIT_CONFIG, ConfigError

from octavo_router.config import RouterConfig, load_config
from octavo_router.server import RouterServer
from octavo_router.workers import WorkerFailed, run_workers

_log = structlog.get_logger("octavo.router")


def main() -> None:
    """Run a router until it is told to stop; exit with 78 if its configuration is wrong."""
    try:
        config = load_config(sys.argv[1:], os.environ)
        configure_logs(level=config.log_level, form=config.log_form)
        if config.workers > 1:
            run(run_workers(config, sys.argv[1:]))
        else:
            run(_serve(config))
    except WorkerFailed as failure:  # it has said why
        raise SystemExit(EXIT_CONFIG if failure.status == EXIT_CONFIG else 1) from None
    except ConfigError as error:
        tell_problems("octavo-router", error.problems)
    except ModelNotFound as error:
        tell_problems("octavo-router", [f"model: {error}"])
    else:
        return
    raise SystemExit(EXIT_CONFIG)


async def _serve(config: RouterConfig) -> None:
    stop = StopRequest()
    stop.watch_signals()
    server = RouterServer(config)
    try:
        bound = await server.start()
        gc.collect()
        gc.freeze()  # what lives now lives on: later collections need not look at it, and stay short
        if config.ready_file is not None:
            write_ready_file(config.ready_file, asdict(bound))
        _log.info("router_serves", router_id=config.router_id, **asdict(bound))
        if config.exit_with_stdin:
            stop.watch_stdin(hurry=False)
        await stop.asked.wait()
        _log.info("router_drains", num_in_flight=server.admission.num_in_flight)
        await _drain(server, stop.hurried)
    finally:
        await server.stop()


async def _drain(server: RouterServer, hurried: asyncio.Event) -> None:
    waits = [asyncio.create_task(server.drain()), asyncio.create_task(hurried.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


if __name__ == "__main__":
    main()
