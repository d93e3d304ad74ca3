"""A worker that `octavo bench` drives: holds one contender in memory, runs one workload per line of standard input.

    python -m octavo_engine.bench --contender octavo:exact
    <- {"facts": {...}}                            when it is loaded
    -> {"concurrency": 8, "requests": 32, "prompt_len": 128, "output_len": 64, "seed": 100}
    <- {"tokens_per_s": 210.4}

Each contender has a process of its own, so that each runs with its own settings of the threading library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from octavo.model_directory import DEFAULT_MODEL, resolve_model
from octavo.workloads import Job, uniform

from octavo_engine.bench.measured import Measured
from octavo_engine.config import EngineConfig
from octavo_engine.core import share_cores

Run = Callable[[Sequence[Job], int], Measured]


def main() -> None:
    """Load the contender, then serve runs until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contender", required=True, metavar="octavo:NUMERICS|transformers:DTYPE")
    options = parser.parse_args()
    kind, _, variant = options.contender.partition(":")
    load = _octavo if kind == "octavo" else _transformers
    facts, run = load(variant, resolve_model(options.model), options.threads)
    _answer({"facts": facts})
    for line in sys.stdin:
        order = json.loads(line)
        jobs = uniform(
            count=order["requests"],
            prompt_len=order["prompt_len"],
            output_len=order["output_len"],
            seed=order["seed"],
        )
        _answer({"tokens_per_s": run(jobs, order["concurrency"]).tokens_per_s})


# Imports stand inside: torch's threading library reads its settings when it is loaded.


def _octavo(numerics: str, directory: Path, threads: int) -> tuple[dict[str, Any], Run]:
    share_cores()
    from octavo_engine import loading  # noqa: PLC0415
    from octavo_engine.bench.closed_loop import run_closed_loop  # noqa: PLC0415
    from octavo_engine.offline import OfflineEngine  # noqa: PLC0415

    config = EngineConfig.model_validate({"model": str(directory), "threads": threads, "numerics": numerics})
    engine = OfflineEngine(config, loading.load(config, lambda _stage, _share: None))
    facts = {"engine": "octavo", "dtype": engine.facts.dtype, "numerics": engine.facts.numerics}
    return facts, partial(run_closed_loop, engine)


def _transformers(dtype: str, directory: Path, threads: int) -> tuple[dict[str, Any], Run]:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from octavo_engine.bench.peer import TransformersPeer  # noqa: PLC0415

    torch.set_num_threads(threads)
    peer = TransformersPeer(directory, getattr(torch, dtype))
    return {"engine": "transformers", "version": transformers.__version__, "dtype": dtype}, peer.run


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
