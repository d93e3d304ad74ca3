"""A worker that `octavo bench` drives: holds one contender in memory, runs one workload per line of standard input.

    python -m octavo_engine.bench --contender octavo:exact
    <- {"facts": {...}}                            when it is loaded
    -> {"concurrency": 8, "requests": 32, "prompt_len": 128, "output_len": 64, "seed": 100, "highest_id": 32000}
    <- {"tokens_per_s": 210.4}
    -> {"workload": "decode:32:1024"}              Octavo only
    <- {"metric": "ms_per_step", "runs": [7.1, 7.2]}
    <- {"error": "RuntimeError: ..."}              in place of an answer

Each contender has a process of its own, so that each runs with its own settings of the threading library. The contender
`ceilings` has nothing to run: its facts are what the device reaches.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.model_directory import DEFAULT_MODEL, resolve_model
from octavo.workloads import Job, parse, uniform

from octavo_engine.config import EngineConfig
from octavo_engine.core import share_cores

Order = dict[str, Any]
Run = Callable[[Order], dict[str, Any]]


def main() -> None:
    """Load the contender, then serve runs until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contender", required=True, metavar="octavo:NUMERICS|transformers:DTYPE|ceilings")
    parser.add_argument("--setting", action="append", default=[], metavar="KEY=VALUE", help="of the engine; repeatable")
    options = parser.parse_args()
    try:
        facts, run = _load(options)
    except Exception as error:  # noqa: BLE001  # the outermost frame of loading: the driver decides how to go on
        _fail(error)
        return
    _answer({"facts": facts})
    for line in sys.stdin:
        try:
            answer = run(json.loads(line))
        except Exception as error:  # noqa: BLE001  # the outermost frame of a run: the driver decides how to go on
            _fail(error)
        else:
            _answer(answer)


def _load(options: argparse.Namespace) -> tuple[dict[str, Any], Run]:
    kind, _, variant = options.contender.partition(":")
    if kind == "ceilings":
        return _ceilings(options.threads)
    if kind == "octavo":
        settings = dict(setting.split("=", 1) for setting in options.setting)
        return _octavo(variant, options.model, options.threads, settings)
    return _transformers(variant, resolve_model(options.model), options.threads)


# Imports stand inside: torch's threading library reads its settings when it is loaded.


def _octavo(numerics: str, model: str, threads: int, settings: dict[str, str]) -> tuple[dict[str, Any], Run]:
    share_cores()
    import torch  # noqa: PLC0415

    from octavo_engine import loading  # noqa: PLC0415
    from octavo_engine.bench.closed_loop import run_closed_loop  # noqa: PLC0415
    from octavo_engine.bench.offline_runs import OfflineRuns  # noqa: PLC0415
    from octavo_engine.offline import OfflineEngine  # noqa: PLC0415

    config = EngineConfig.model_validate({"model": model, "threads": threads, "numerics": numerics} | settings)
    engine = OfflineEngine(config, loading.load(config, lambda _stage, _share: None))
    runs = OfflineRuns(engine)
    # As the core process does before it steps.
    gc.collect()
    gc.freeze()
    gc.disable()

    def run(order: Order) -> dict[str, Any]:
        if "workload" in order:
            metric, values = runs.measure(parse(order["workload"]))
            return {"metric": metric, "runs": values}
        return {"tokens_per_s": run_closed_loop(engine, _jobs(order), order["concurrency"]).tokens_per_s}

    facts = {
        "engine": "octavo",
        "dtype": engine.facts.dtype,
        "numerics": engine.facts.numerics,
        "device": engine.facts.device,
        "num_pages": engine.facts.num_pages,
        "card": torch.cuda.get_device_name() if engine.facts.device == "cuda" else None,
    }
    return facts, run


def _transformers(dtype: str, directory: Path, threads: int) -> tuple[dict[str, Any], Run]:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from octavo_engine.bench.peer import TransformersPeer  # noqa: PLC0415

    torch.set_num_threads(threads)
    peer = TransformersPeer(directory, getattr(torch, dtype))

    def run(order: Order) -> dict[str, Any]:
        return {"tokens_per_s": peer.run(_jobs(order), order["concurrency"]).tokens_per_s}

    return {"engine": "transformers", "version": transformers.__version__, "dtype": dtype}, run


def _ceilings(threads: int) -> tuple[dict[str, Any], Run]:
    import torch  # noqa: PLC0415

    from octavo_engine.bench.ceilings import measure_ceilings  # noqa: PLC0415

    torch.set_num_threads(threads)

    def run(_order: Order) -> dict[str, Any]:
        raise ValueError("the ceilings are measured once, at the start")

    return measure_ceilings(), run


def _jobs(order: Order) -> list[Job]:
    return uniform(
        count=order["requests"],
        prompt_len=order["prompt_len"],
        output_len=order["output_len"],
        seed=order["seed"],
        highest_id=order["highest_id"],
    )


def _fail(error: Exception) -> None:
    traceback.print_exception(error)
    _answer({"error": f"{type(error).__name__}: {error}"})


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
