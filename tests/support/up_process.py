"""Runs what `octavo up` runs, over tiny processes. Arguments: the state directory, then flags for every engine."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from octavo_client.cli.console import explained
from octavo_client.cli.local import until_signal
from octavo_client.cli.up import _serve
from octavo_client.stack_options import StackOptions
from support.supervising import TINY


def main(state_directory: Path, engine_flags: tuple[str, ...]) -> None:
    options = StackOptions(
        state_directory=state_directory,
        engine_command=TINY,
        router_command=TINY,
        redis_url="redis://127.0.0.1:1",
        wait_for_fleet=False,
        stop_grace_s=30,
        engine_flags=engine_flags,
    )
    with explained():
        asyncio.run(until_signal(_serve(options)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
