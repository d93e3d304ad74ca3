"""A process that runs a part of a closed loop's clients, so that the clients' own work does not bound the figure.

    python -m octavo_client.bench.load_process HOST:PORT
    -> {"count": 64, "concurrency": 16, "prompt_len": 1024, "output_len": 256, "seed": 1, "highest_id": 32000, "part": [0, 4]}
    <- {"ready": true}                   its prompts are made
    -> (any line)                        go
    <- {"output_tokens": ..., "started": ..., "ended": ..., "first_token_s": [...], "inter_token_s": [...]}
    <- {"error": "..."}                  in place of an answer

`count` and `concurrency` are those of all processes together; "part" is [this process, number of processes].
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

from octavo.process import run
from octavo.workloads import ClosedLoop

from octavo_client.bench.serving_load import ServingResult, run_closed_loop
from octavo_client.client import OctavoClient

_DIGITS: Final = 6  # microseconds


async def serve(target: str) -> None:
    """Run orders from standard input until it ends."""
    async with OctavoClient(target) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                _say(_numbers(await _run(client, json.loads(line))))
            except Exception as error:  # noqa: BLE001  # the outermost frame of a run: the driver decides how to go on
                _say({"error": f"{type(error).__name__}: {_reason(error)}"})


async def _run(client: OctavoClient, order: dict[str, Any]) -> ServingResult:
    index, parts = order.pop("part")
    loop = ClosedLoop(**order)
    jobs = loop.jobs()[index::parts]
    _say({"ready": True})
    await asyncio.to_thread(sys.stdin.readline)
    return await run_closed_loop(client, jobs, len(range(index, loop.concurrency, parts)))


def _numbers(result: ServingResult) -> dict[str, Any]:
    return {
        "output_tokens": result.output_tokens,
        "started": result.started,
        "ended": result.ended,
        "first_token_s": [round(value, _DIGITS) for value in result.first_token_s],
        "inter_token_s": [round(value, _DIGITS) for value in result.inter_token_s],
    }


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(serve(sys.argv[1]))
