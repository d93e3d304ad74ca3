"""Measures what a token costs the front process: `python tests/support/link_cost.py [sequences] [tokens] [links]`.

A real engine process with the fake core streams over real gRPC links to this process. The figure is the CPU time of the
front, user and system, of all its threads, per token delivered.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.engine_process import running_engine
from support.link_client import LinkClient, a_submit, open_link


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(num_sequences: int, num_tokens: int, num_links: int) -> dict[str, float]:
    """Stream `num_tokens` to each of `num_sequences` requests, shared out over the links."""
    flags = ("--max-sequences", str(num_sequences), "--num-pages", "65536", "--max-step-tokens", "8192")
    async with (
        running_engine(*flags, "--max-waiting", "10000") as engine,
        AsyncExitStack() as stack,
    ):
        pid, core = engine.process.pid, engine.core_pid
        links: list[LinkClient] = [
            await stack.enter_async_context(open_link(engine.stub(), f"router-{index}")) for index in range(num_links)
        ]
        before, core_before, started = cpu_s(pid), cpu_s(core), time.perf_counter()
        for index in range(num_sequences):
            await links[index % num_links].submit(
                a_submit(index, prompt=[20 + index % 900] * 16, max_tokens=num_tokens)
            )
        for index in range(num_sequences):
            await links[index % num_links].ended(index)
        wall_s = time.perf_counter() - started
        total = num_sequences * num_tokens
        return {
            "front_us_per_token": round((cpu_s(pid) - before) / total * 1e6, 2),
            "core_us_per_token": round((cpu_s(core) - core_before) / total * 1e6, 2),
            "tokens_per_s": round(total / wall_s),
        }


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]] + [256, 400, 1][len(sys.argv) - 1 :]
    print(json.dumps(asyncio.run(measure(*arguments))))  # noqa: T201
