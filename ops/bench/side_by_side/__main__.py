"""Runs the same engines, prompts and faults behind Octavo's router and behind the gateway smg.

    python ops/bench/side_by_side --smg PATH/TO/smg --output ops/bench/results/cpu-side-by-side.jsonl
    python ops/bench/side_by_side --smg PATH/TO/smg --pace 20:0.2:0.5      # engines that wait instead of computing
    python ops/bench/side_by_side --render        # writes the newest results into docs/side-by-side.md

Contenders take turns within each round, so that a slow minute meets both. One JSON line per contender, workload and metric.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from closed_loop import run_load
from contenders import CONTENDERS, SMG_TUNED, Contender, NotStarted, Setup, started
from faults import FAULTS, FaultPlan, run_fault
from loads import Load, parse_load
from octavo.model_directory import DEFAULT_MODEL, served_name
from octavo_client.bench.results import Result, ResultFile
from octavo_client.stack import StackFailed
from pace import Pace
from report import PREFIX, render

ROOT: Final = Path(__file__).resolve().parents[3]
DEFAULT_LOADS: Final = ("shared_prefix:8:6:300:30:24", "conversations:8:4:60:24", "distinct:24:200:24")

Work = Load | FaultPlan


def main() -> None:
    """Run, or render."""
    arguments = _parser().parse_args()
    arguments.contender = arguments.contender or list(CONTENDERS)
    arguments.fault = arguments.fault or list(FAULTS)
    if arguments.render:
        render(arguments.output, ROOT / "docs/side-by-side.md")
        return
    if shutil.which(arguments.smg) is None and arguments.contender != ["octavo"]:
        raise SystemExit(f"no program {arguments.smg!r}: pip install smg, then name it with --smg")
    asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> None:
    setup = Setup(
        model=arguments.model,
        num_engines=arguments.engines,
        threads=arguments.threads,
        pace=arguments.pace,
        engine_flags=tuple(arguments.engine_flags.split()),
        router_flags=tuple(arguments.router_flags.split()),
        smg=arguments.smg,
        smg_flags=tuple(arguments.smg_flags.split()),
    )
    file = ResultFile(arguments.output)
    contenders = [name for name in CONTENDERS if name in arguments.contender]
    for work in _works(arguments):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        errors: dict[str, str] = {}
        for round_number in range(arguments.rounds):
            for name in contenders:
                try:
                    async with asyncio.timeout(arguments.run_limit_s), started(name, setup) as contender:
                        figures = await _measure(contender, work, arguments, round_number)
                except (StackFailed, NotStarted, TimeoutError, RuntimeError) as error:
                    errors[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                    print(f"{work.name}  {name}  {errors[name]}", flush=True)
                    continue
                runs[name].append(figures)
                told = "  ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
                print(f"{work.name}  {name}  {told}", flush=True)
        details = _details(setup, arguments, work)
        # In one go: lines of one date belong to one comparison.
        file.append(
            [result for name in contenders for result in _results(name, work, runs[name], errors.get(name), details)]
        )


async def _measure(
    contender: Contender, work: Work, arguments: argparse.Namespace, round_number: int
) -> dict[str, float]:
    if isinstance(work, FaultPlan):
        return await run_fault(contender, work, seed=arguments.seed + round_number)
    return await run_load(contender, work, arguments.concurrency)


def _works(arguments: argparse.Namespace) -> list[Work]:
    loads = DEFAULT_LOADS if arguments.load is None else tuple(filter(None, arguments.load))
    plans = [
        FaultPlan(
            fault=fault,
            num_streams=arguments.streams,
            words=arguments.stream_words,
            output_tokens=arguments.stream_tokens,
            limit_s=arguments.fault_limit_s,
            probe_limit_s=arguments.probe_limit_s,
        )
        for fault in arguments.fault
        if fault != "none"
    ]
    return [*(parse_load(name, arguments.seed) for name in loads), *plans]


def _results(
    name: str, work: Work, runs: list[dict[str, float]], error: str | None, details: Mapping[str, Any]
) -> list[Result]:
    common: dict[str, Any] = {
        "engine": name.partition("-")[0],
        "variant": name.partition("-")[2],
        "target": "router",
        "shape": details["model"],
        "workload": f"{PREFIX}{work.name}{details['pace'] and '@' + details['pace']}",
        "details": {key: value for key, value in details.items() if key != "model"},
    }
    metrics = list(dict.fromkeys(metric for figures in runs for metric in figures))
    results = [
        Result(**common, metric=metric, runs=tuple(figures[metric] for figures in runs if metric in figures))
        for metric in metrics
    ]
    return results if error is None else [*results, Result(**common, error=error)]


def _details(setup: Setup, arguments: argparse.Namespace, work: Work) -> dict[str, Any]:
    details: dict[str, Any] = {
        "model": served_name(setup.model),
        "num_engines": setup.num_engines,
        "threads": setup.threads,
        "pace": str(setup.pace or ""),
        "engine_flags": " ".join(setup.engine_flags),
        "router_flags": " ".join(setup.router_flags),
        "smg_version": _smg_version(setup.smg),
        "smg_flags": " ".join(setup.smg_flags),
        "smg_tuned_flags": " ".join(SMG_TUNED),
        "seed": arguments.seed,
    }
    if isinstance(work, Load):
        return details | {"concurrency": arguments.concurrency, "requests": work.num_requests}
    return details | {"limit_s": work.limit_s, "probe_limit_s": work.probe_limit_s}


def _smg_version(smg: str) -> str:
    """Return the version of the package that the program belongs to, as the interpreter beside it knows it."""
    ask = "import importlib.metadata; print(importlib.metadata.version('smg'))"
    try:
        done = subprocess.run(
            [Path(smg).resolve().parent / "python", "-c", ask], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="side_by_side", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--render", action="store_true", help="write the newest results into docs/side-by-side.md, and run nothing")
    add("--output", type=Path, default=ROOT / "ops/bench/results/cpu-side-by-side.jsonl", help="file of results")
    add("--smg", default="smg", help="the gateway's program (default: the one on the path)")
    add("--smg-flags", default="", help="added to its command line")
    add("--contender", action="append", choices=CONTENDERS, help="only these (default: all)")
    add("--model", default=DEFAULT_MODEL, help="what the engines serve")
    add("--engines", type=int, default=2, help="number of engines")
    add("--threads", type=int, default=1, help="CPU threads of each engine")
    add("--pace", type=Pace.read, help="STEP:PREFILL:DECODE ms: engines wait so long instead of computing (pace.py)")
    add("--engine-flags", default="", help="added to each engine's command line")
    add("--router-flags", default="", help="added to the Octavo router's command line")
    add("--rounds", type=int, default=3, help="times that each contender runs each workload")
    add("--seed", type=int, default=1, help="of the texts")
    add("--load", action="append", help=f"workload; '' for none (default: {' '.join(DEFAULT_LOADS)})")
    add("--concurrency", type=int, default=8, help="clients of the closed loop")
    add("--fault", action="append", choices=(*FAULTS, "none"), help="fault; none for no faults (default: all)")
    add("--streams", type=int, default=6, help="streams that run when a fault strikes")
    add("--stream-words", type=int, default=40, help="words of their prompts")
    add("--stream-tokens", type=int, default=160, help="tokens of their output")
    add("--fault-limit-s", type=float, default=45, help="a stream not over by then is hung")
    add("--probe-limit-s", type=float, default=10, help="a new request without its whole answer by then has failed")
    add("--run-limit-s", type=float, default=900, help="limit of one run, its start included")
    return parser


if __name__ == "__main__":
    main()
