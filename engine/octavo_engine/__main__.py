"""`octavo-engine`: read the configuration, serve, exit with a status that a supervisor understands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import structlog
from octavo.attributes import Log
from octavo.logs import configure_logs
from octavo.process import run, tell_problems
from octavo.settings import EXIT_CONFIG, ConfigError

from octavo_engine.config import EngineConfig, load_config
from octavo_engine.core_process import CORE_COMMAND, CoreProcess
from octavo_engine.front import Front


def main(arguments: Sequence[str] | None = None, core_command: Sequence[str] = CORE_COMMAND) -> int:
    """Run an engine; return its exit status: 0 after a drain, 70 after a failure, 78 for a wrong configuration.

    Args:
        arguments: flags; default those of the command line.
        core_command: program that runs the core.
    """
    try:
        config = load_config(sys.argv[1:] if arguments is None else arguments, os.environ)
        configure_logs(level=config.log_level, form=config.log_form)
        structlog.contextvars.bind_contextvars(**{Log.ENGINE_ID: config.engine_id})
        return run(_serve(config, core_command))
    except ConfigError as error:
        tell_problems("octavo-engine", error.problems)
        return EXIT_CONFIG


async def _serve(config: EngineConfig, core_command: Sequence[str]) -> int:
    core = await CoreProcess.start(config, core_command)
    return await Front(config, core).run()


if __name__ == "__main__":
    sys.exit(main())
