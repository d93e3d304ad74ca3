"""`octavo bench`: the engine alone, the engine behind the router, and a peer, interleaved on the same prompts."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from octavo.model_directory import DEFAULT_MODEL
from octavo.workloads import uniform
from rich.table import Table

from octavo_client import bench_results
from octavo_client.bench_results import Result
from octavo_client.cli.console import Failed, err, out, run
from octavo_client.client import OctavoClient
from octavo_client.serving_load import run_closed_loop
from octavo_client.stack import LocalStack
from octavo_client.stack_options import StackOptions

_LINE_LIMIT: Final = 1 << 20


def bench(
    concurrency: Annotated[list[int], typer.Option("--concurrency", "-c", help="Requests in flight; repeatable.")] = [  # noqa: B006  # typer reads the default, nobody changes it
        1,
        8,
        32,
    ],
    requests: Annotated[int, typer.Option(help="Requests of a run (at most eight per client).")] = 32,
    prompt_len: Annotated[int, typer.Option(help="Prompt tokens.")] = 128,
    output_len: Annotated[int, typer.Option(help="Output tokens.")] = 64,
    repeat: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads of each contender.")] = os.cpu_count() or 1,
    numerics: Annotated[list[str], typer.Option(help="exact or fast; repeatable.")] = ["exact", "fast"],  # noqa: B006
    peer: Annotated[list[str], typer.Option(help="Type that transformers runs in, or none; repeatable.")] = ["float32"],  # noqa: B006
    serve: Annotated[bool, typer.Option(help="Also measure through the router.")] = True,  # noqa: FBT002
    model: Annotated[str, typer.Option(help="Model directory or name.")] = DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option(help="File of JSON lines to append results to.")] = None,
) -> None:
    """Measure output tokens per second, prefill included, in a closed loop of clients."""
    contenders = [f"octavo:{mode}" for mode in numerics] + [
        f"transformers:{dtype}" for dtype in peer if dtype != "none"
    ]
    shape = {"prompt_len": prompt_len, "output_len": output_len}
    plan = _Plan(model, threads, contenders, concurrency, requests, repeat, serve, shape)
    results = run(plan.measure())
    out.print(_table(results, concurrency))
    if output is not None:
        bench_results.append(output, results, shape=Path(model).name)


class _Plan:
    """Which runs to make, in which order."""

    def __init__(
        self,
        model: str,
        threads: int,
        contenders: list[str],
        concurrency: list[int],
        requests: int,
        repeat: int,
        serve: bool,  # noqa: FBT001  # from the command line
        shape: Mapping[str, int],
    ) -> None:
        self._model, self._threads, self._contenders = model, threads, contenders
        self._concurrency, self._requests, self._repeat = concurrency, requests, repeat
        self._serve, self._shape = serve, shape

    async def measure(self) -> list[Result]:
        """Run everything; contenders take turns within each round, so that a slow minute meets all of them."""
        async with AsyncExitStack() as stack:
            err.print("Loading the model for each contender")
            workers = [
                await stack.enter_async_context(_worker(self._model, self._threads, each)) for each in self._contenders
            ]
            if not self._serve:
                return await self._rounds(workers, None)
            with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
                options = StackOptions(
                    state_directory=Path(folder), model=self._model, num_engines=1, threads=self._threads
                )
                async with LocalStack(options) as served, OctavoClient(served.router.address) as client:
                    return await self._rounds(workers, client)

    async def _rounds(self, workers: list[_Worker], client: OctavoClient | None) -> list[Result]:
        results: list[Result] = []
        for concurrency in self._concurrency:
            count = max(concurrency, min(self._requests, 8 * concurrency))
            values: dict[int, list[float]] = {}
            for turn in range(self._repeat + 1):  # turn 0 warms up
                # Prompts of their own for each concurrency: what serves is not emptied of prefixes in between.
                seed = 1000 * concurrency + turn
                for index, worker in enumerate(workers):
                    order = {"concurrency": concurrency, "seed": seed, **self._shape}
                    size = count if turn else min(count, concurrency)
                    value = await worker.run(order | {"requests": size})
                    if turn:
                        values.setdefault(index, []).append(value)
                        err.print(f"c={concurrency} {self._contenders[index]}: {value:.1f} tok/s")
                if client is not None:
                    jobs = uniform(count=count if turn else min(count, concurrency), seed=seed, **self._shape)
                    value = (await run_closed_loop(client, jobs, concurrency)).tokens_per_s
                    if turn:
                        values.setdefault(-1, []).append(value)
                        err.print(f"c={concurrency} octavo through the router: {value:.1f} tok/s")
            workload = f"closed:{concurrency}:{self._shape['prompt_len']}:{self._shape['output_len']}"
            for index, runs in values.items():
                results.append(self._result(workers[max(index, 0)].facts, workload, runs, served=index < 0))
        return results

    def _result(self, facts: dict[str, Any], workload: str, runs: list[float], *, served: bool) -> Result:
        return Result(
            engine=facts["engine"],
            variant=facts.get("numerics", facts["dtype"]),
            target="router" if served else "offline",
            workload=workload,
            metric="out_tok_s",
            value=statistics.median(runs),
            runs=tuple(runs),
            details={"dtype": facts["dtype"], "threads": self._threads},
        )


class _Worker:
    """The process that holds one contender."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.facts: dict[str, Any] = {}

    async def start(self) -> None:
        self.facts = (await self._answer())["facts"]

    async def run(self, order: Mapping[str, Any]) -> float:
        assert self._process.stdin is not None  # noqa: S101  # started with a pipe
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        return float((await self._answer())["tokens_per_s"])

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # started with a pipe
        while line := await self._process.stdout.readline():
            if line.startswith((b'{"facts"', b'{"tokens_per_s"')):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise Failed("the benchmark's worker ended; its errors stand above")


@asynccontextmanager
async def _worker(model: str, threads: int, contender: str) -> AsyncIterator[_Worker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "octavo_engine.bench", "--model", model, "--threads", str(threads)),
        *("--contender", contender),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    try:
        worker = _Worker(process)
        await worker.start()
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _table(results: list[Result], concurrency: list[int]) -> Table:
    table = Table("", *(f"c = {each}" for each in concurrency), title="output tokens/s, prefill included (median)")
    rows: dict[str, list[str]] = {}
    for result in results:
        name = f"{result.engine} {result.variant} ({result.target})"
        rows.setdefault(name, []).append(f"{result.value:.1f}")
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
