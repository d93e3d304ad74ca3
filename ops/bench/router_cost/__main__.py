"""Measures what the router costs: deciding, the first token, each streamed token, and what slow readers cost the others.

    python ops/bench/router_cost                                  # all parts, a few minutes
    python ops/bench/router_cost --part decision --part streams
    python ops/bench/router_cost --output ops/bench/results/cpu-router.jsonl

Engines are scripted and run in a process of their own, and so do the clients. Where processes share cores the rates are
those of a busy machine; the CPU time per token is the router's alone.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from decision import decision_ms
from latency import added_ms
from octavo.logs import configure_logs
from octavo.model_directory import DEFAULT_MODEL
from octavo_client.bench.results import Result, ResultFile
from streaming import Streams, measure, measure_bare

Figures = dict[str, float]

# Each token is a message of its own: the readers keep up, and the next step is far away.
PACED: Final = {"readers": 64, "steps_per_s": 20.0}
BARE: Final = Streams(engines=0, **PACED)
LOADS: Final = {
    "paced": Streams(engines=8, **PACED),
    "saturated": Streams(engines=8, readers=256, steps_per_s=200.0),
}
CROWD: Final = {"engines": 4, "readers": 48, "steps_per_s": 20.0, "measured_s": 8.0}
SLOW_SHARE: Final = 4  # one slow reader for so many that read


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="what to measure; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each measurement; the median counts")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="whose tokenizer the router has")
    parser.add_argument("--output", type=Path, help="append the results to this file")
    arguments = parser.parse_args()
    configure_logs(level="warning")
    file = ResultFile(arguments.output) if arguments.output else None
    for part in arguments.part or PARTS:
        results = asyncio.run(PARTS[part](arguments))
        for result in results:
            print(f"{result.workload:28} {result.metric:22} {result.value:12.4g}  {_rounded(result.runs)}", flush=True)
        if file is not None:
            file.append(results)


async def decisions(arguments: argparse.Namespace) -> list[Result]:
    """Time decisions for 1k and 6k prompt tokens."""
    results = []
    for prompt_len in (1024, 6144):
        runs = [decision_ms(prompt_len) for _ in range(arguments.rounds)]
        figures = {f"{name}_ms_p50": [run[name] for run in runs] for name in runs[0]}
        results += _results(f"decision:8:{prompt_len}", figures, {"engines": 8})
    return results


async def first_tokens(arguments: argparse.Namespace) -> list[Result]:
    """Time the first token of prompts of 1k tokens."""
    runs = [await added_ms(1024, 200, arguments.model) for _ in range(arguments.rounds)]
    return _results("ttft:1024", {f"{name}_ms_p50": [run[name] for run in runs] for name in runs[0]}, {})


async def streams(arguments: argparse.Namespace) -> list[Result]:
    """Count what the router's process spends on a token, beside a server that does nothing else than send."""
    results = await _rounds("bare", arguments, lambda: measure_bare(BARE), {"readers": BARE.readers})
    for name, load in LOADS.items():
        details = {"engines": load.engines, "readers": load.readers, "steps_per_s": load.steps_per_s}
        results += await _rounds(name, arguments, lambda load=load: measure(load, arguments.model), details)
    return results


async def slow_readers(arguments: argparse.Namespace) -> list[Result]:
    """Compare the gaps of streams with and without slow readers beside them, in turns."""
    slow = CROWD["readers"] // SLOW_SHARE
    runs: dict[str, list[float]] = {"gap_ms_p99": [], "gap_ms_p99_beside_slow": [], "gap_p99_change": []}
    for _ in range(arguments.rounds):
        alone = (await measure(Streams(**CROWD), arguments.model))["gap_ms_p99"]
        beside = (await measure(Streams(**CROWD, slow=slow), arguments.model))["gap_ms_p99"]
        for name, value in zip(runs, (alone, beside, beside / alone - 1), strict=True):
            runs[name].append(value)
    return _results("slow_readers", runs, {**CROWD, "slow": slow})


async def _rounds(
    name: str, arguments: argparse.Namespace, work: Callable[[], Awaitable[Figures]], details: dict[str, Any]
) -> list[Result]:
    runs = [await work() for _ in range(arguments.rounds)]
    return _results(f"streams:{name}", {metric: [run[metric] for run in runs] for metric in runs[0]}, details)


def _results(workload: str, runs: dict[str, list[float]], details: dict[str, Any]) -> list[Result]:
    return [_result(workload, metric, tuple(values), details) for metric, values in runs.items()]


def _result(workload: str, metric: str, runs: tuple[float, ...], details: dict[str, Any]) -> Result:
    return Result(
        engine="octavo",
        variant="",
        target="router",
        shape="scripted",
        workload=f"router_cost/{workload}",
        metric=metric,
        runs=runs,
        details=details,
    )


def _rounded(runs: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in runs)


PARTS: Final = {"decision": decisions, "ttft": first_tokens, "streams": streams, "slow": slow_readers}


if __name__ == "__main__":
    main()
