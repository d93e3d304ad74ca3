"""The workload `closed`: a closed loop on the engine alone, the engine behind the router, and a peer, interleaved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.model_directory import served_name
from octavo.workloads import uniform

from octavo_client.bench.model import Model
from octavo_client.bench.results import Result
from octavo_client.bench.serving_load import run_closed_loop
from octavo_client.bench.worker import Worker, worker
from octavo_client.client import OctavoClient
from octavo_client.stack import LocalStack
from octavo_client.stack_options import StackOptions

Tell = Callable[[str], None]
"""Called with a line for a person as the work goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedOptions:
    """Which runs to make.

    Attributes:
        contenders: such as "octavo:exact" or "transformers:float32".
        concurrency: requests in flight, one row each.
        requests: of a run, at most eight per client.
        repeat: rounds.
        serve: also measure through the router.
    """

    model: str
    threads: int
    contenders: Sequence[str]
    concurrency: Sequence[int]
    requests: int
    prompt_len: int
    output_len: int
    repeat: int
    serve: bool


class Closed:
    """Measures output tokens per second, prefill included.

    Args:
        options: what to run.
        tell: gets a line for a person as the work goes on.

    Raises:
        ModelNotFound: no such model.
    """

    def __init__(self, options: ClosedOptions, tell: Tell) -> None:
        self._options = options
        self._tell = tell
        # Prompts are the same for all: their lengths, and a limit of ids for small vocabularies.
        self._prompts = {
            "prompt_len": options.prompt_len,
            "output_len": options.output_len,
            "highest_id": Model.of(options.model).highest_id,
        }

    async def measure(self) -> list[Result]:
        """Run everything; contenders take turns within each round, so that a slow minute meets all of them.

        Raises:
            WorkerFailed, StackFailed: a contender does not come up or ends.
        """
        options = self._options
        async with AsyncExitStack() as stack:
            self._tell("Loading the model for each contender")
            workers = [
                await stack.enter_async_context(worker(each, model=options.model, threads=options.threads))
                for each in options.contenders
            ]
            if not options.serve:
                return await self._rounds(workers, None)
            with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
                served_options = StackOptions(
                    state_directory=Path(folder), model=options.model, num_engines=1, threads=options.threads
                )
                async with LocalStack(served_options) as served, OctavoClient(served.router.address) as client:
                    return await self._rounds(workers, client)

    async def _rounds(self, workers: Sequence[Worker], client: OctavoClient | None) -> list[Result]:
        options = self._options
        results: list[Result] = []
        for concurrency in options.concurrency:
            count = max(concurrency, min(options.requests, 8 * concurrency))
            values: dict[int, list[float]] = {}
            for turn in range(options.repeat + 1):  # turn 0 warms up
                # Prompts of their own for each concurrency: what serves is not emptied of prefixes in between.
                seed = 1000 * concurrency + turn
                for index, each in enumerate(workers):
                    order = {"concurrency": concurrency, "seed": seed, **self._prompts}
                    size = count if turn else min(count, concurrency)
                    value = float((await each.run(order | {"requests": size}))["tokens_per_s"])
                    if turn:
                        values.setdefault(index, []).append(value)
                        self._tell(f"c={concurrency} {options.contenders[index]}: {value:.1f} tok/s")
                if client is not None:
                    jobs = uniform(count=count if turn else min(count, concurrency), seed=seed, **self._prompts)
                    value = (await run_closed_loop(client, jobs, concurrency)).tokens_per_s
                    if turn:
                        values.setdefault(-1, []).append(value)
                        self._tell(f"c={concurrency} octavo through the router: {value:.1f} tok/s")
            workload = f"closed:{concurrency}:{options.prompt_len}:{options.output_len}"
            for index, runs in values.items():
                results.append(self._result(workers[max(index, 0)].facts, workload, runs, served=index < 0))
        return results

    def _result(self, facts: dict[str, Any], workload: str, runs: list[float], *, served: bool) -> Result:
        return Result(
            engine=facts["engine"],
            variant=facts.get("numerics", facts["dtype"]),
            target="router" if served else "offline",
            shape=served_name(self._options.model),
            workload=workload,
            metric="out_tok_s",
            runs=tuple(runs),
            details={"dtype": facts["dtype"], "threads": self._options.threads},
        )
