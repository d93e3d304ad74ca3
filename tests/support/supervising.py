"""Runs a local stack of tiny processes until it is killed; prints the ids of its processes as JSON.

Arguments: the state directory.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from octavo_client.stack import LocalStack
from octavo_client.stack_options import StackOptions

TINY = (sys.executable, str(Path(__file__).with_name("tiny_process.py")))


async def main(state_directory: Path) -> None:
    options = StackOptions(
        state_directory=state_directory, engine_command=TINY, router_command=TINY, wait_for_fleet=False
    )
    async with LocalStack(options) as stack:
        pids = [stack.router.pid, *(ends.pid for ends in stack.engines.values())]
        sys.stdout.write(json.dumps({"pids": pids, "redis_url": stack.redis_url}) + "\n")
        sys.stdout.flush()
        await stack.next_exit()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
