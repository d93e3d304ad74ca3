"""A worker that `octavo bench` drives: holds engines and peers in memory, runs one workload per line of standard input.

python -m octavo_engine.bench --contenders octavo:exact transformers:float32
<- {"contenders": [...]}                       facts about each, when all are loaded
-> {"contender": 0, "concurrency": 8, "requests": 32, "prompt_len": 128, "output_len": 64, "seed": 100}
<- {"tokens_per_s": 210.4}
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

import torch
import transformers
from octavo.model_directory import DEFAULT_MODEL, resolve_model
from octavo.workloads import Job, uniform

from octavo_engine import loading
from octavo_engine.bench.closed_loop import Measured, run_closed_loop
from octavo_engine.bench.peer import TransformersPeer
from octavo_engine.config import EngineConfig
from octavo_engine.offline import OfflineEngine

Run = Callable[[Sequence[Job], int], Measured]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Load the contenders, then serve runs until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contenders", nargs="+", required=True, metavar="octavo:NUMERICS|transformers:DTYPE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contenders = [_contender(name, resolve_model(options.model), options.threads) for name in options.contenders]
    _answer({"contenders": [facts for facts, _ in contenders]})
    for line in sys.stdin:
        order = json.loads(line)
        jobs = uniform(
            count=order["requests"],
            prompt_len=order["prompt_len"],
            output_len=order["output_len"],
            seed=order["seed"],
        )
        _, run = contenders[order["contender"]]
        _answer({"tokens_per_s": run(jobs, order["concurrency"]).tokens_per_s})


def _contender(name: str, directory: Path, threads: int) -> tuple[dict[str, Any], Run]:
    kind, _, variant = name.partition(":")
    if kind == "transformers":
        peer = TransformersPeer(directory, _DTYPES[variant])
        return {"engine": kind, "version": transformers.__version__, "dtype": variant}, peer.run
    config = EngineConfig.model_validate({"model": str(directory), "threads": threads, "numerics": variant})
    engine = OfflineEngine(config, loading.load(config, lambda _stage, _share: None))
    facts = {"engine": "octavo", "dtype": engine.facts.dtype, "numerics": engine.facts.numerics}
    return facts, partial(run_closed_loop, engine)


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
