"""Says which kernels the time of a workload goes to: `python -m octavo_engine.bench.kernel_profile decode:1:1024`.

Kernels of a captured step overlap: each is launched while the one before still runs, then waits for its end. So a kernel
is charged with the time from the end of the one before to its own end, and the charges add up to the time that the
device was watched. A kernel's grid is part of its name: products of different weights are one kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo.workloads import HIGHEST_ID, Job, Workload, parse

_DEVICE_WORK: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_STEPS: Final = 24  # decode steps that are watched
_LONGEST_NAME: Final = 56


@dataclass(frozen=True, slots=True)
class Charge:
    """What the calls of one kernel cost together.

    Attributes:
        name: of the kernel, with its grid.
        calls: how many.
        us: microseconds charged to them.
        busy_us: microseconds that they ran; more than `us` where they waited for the kernel before.
    """

    name: str
    calls: int
    us: float
    busy_us: float


def charges(events: Iterable[dict[str, Any]]) -> list[Charge]:
    """Charge the device's time to kernels, the dearest first.

    Args:
        events: those of a trace in Chrome's format, times in microseconds; what is no device work is left out.
    """
    work = sorted(
        (event for event in events if event.get("cat") in _DEVICE_WORK), key=lambda event: event["ts"] + event["dur"]
    )
    calls: dict[str, int] = defaultdict(int)
    charged: dict[str, float] = defaultdict(float)
    busy: dict[str, float] = defaultdict(float)
    last_end = min((event["ts"] for event in work), default=0.0)
    for event in work:
        end = event["ts"] + event["dur"]
        name = _name(event)
        calls[name] += 1
        charged[name] += end - last_end
        busy[name] += event["dur"]
        last_end = end
    return sorted((Charge(name, calls[name], charged[name], busy[name]) for name in calls), key=lambda each: -each.us)


def _name(event: dict[str, Any]) -> str:
    name = event["name"].removeprefix("void ").split("(")[0].split("<")[0][:_LONGEST_NAME]
    grid = event.get("args", {}).get("grid")
    return name if grid is None else f"{name} {'x'.join(map(str, grid))}"


def table(rows: Sequence[Charge], steps: int) -> str:
    """Return a table for a person, per step."""
    total = sum(row.us for row in rows) or 1.0
    lines = [f"{'kernel':{_LONGEST_NAME + 16}} {'calls':>7} {'us':>9} {'busy us':>9} {'share':>6}"]
    lines += [
        f"{row.name:{_LONGEST_NAME + 16}} {row.calls / steps:7.1f} {row.us / steps:9.1f} {row.busy_us / steps:9.1f} "
        f"{row.us / total:6.1%}"
        for row in rows
        if row.us >= total / 1000
    ]
    lines.append(f"{'all':{_LONGEST_NAME + 16}} {sum(row.calls for row in rows) / steps:7.1f} {total / steps:9.1f}")
    return "\n".join(lines)


def main() -> None:
    """Load the model once, then profile each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help="decode:BATCH:CONTEXT or prefill:COUNT:PROMPT")
    parser.add_argument("--model", default="random:llama-8b")
    parser.add_argument("--numerics", default="auto", choices=["auto", "exact", "fast"])
    options = parser.parse_args()
    from octavo_engine import loading  # noqa: PLC0415  # torch takes long to import
    from octavo_engine.config import EngineConfig  # noqa: PLC0415
    from octavo_engine.offline import OfflineEngine  # noqa: PLC0415

    config = EngineConfig.model_validate({"model": options.model, "numerics": options.numerics})
    engine = OfflineEngine(config, loading.load(config, lambda _stage, _share: None))
    for name in options.workloads:
        workload = parse(name)
        rows, steps = _profile(engine, workload)
        sys.stdout.write(f"{options.model} {engine.facts.numerics} {workload.name}, per step of {steps}\n")
        sys.stdout.write(table(rows, steps) + "\n\n")
        sys.stdout.flush()


def _profile(engine: Any, workload: Workload) -> tuple[list[Charge], int]:
    from octavo_engine.bench.requests import submit  # noqa: PLC0415

    highest_id = min(HIGHEST_ID, engine.facts.vocab_size)
    if workload.kind not in {"decode", "prefill"}:
        raise SystemExit(f"{workload.name}: only decode and prefill are profiled")
    outputs = _STEPS if workload.kind == "decode" else 1
    jobs = [Job(job.prompt, outputs) for job in workload.jobs(highest_id)]
    if workload.kind == "decode":
        engine.generate([submit(job) for job in jobs])  # now the prompts are cached
    engine.generate([submit(job) for job in jobs])  # warm: sizes captured, kernels compiled
    if workload.kind == "prefill":
        engine.scheduler.flush()
    steps = 0

    def count(frame: Any) -> tuple[()]:
        nonlocal steps
        steps += frame.num_tokens > 0
        return ()

    import torch  # noqa: PLC0415

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        engine.generate([submit(job) for job in jobs], on_frame=count)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return charges(events), steps


if __name__ == "__main__":
    main()
