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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from octavo.workloads import HIGHEST_ID, ClosedLoop, Job, Workload, closed_loop, parse

_DEVICE_WORK: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_STEPS: Final = 24  # decode steps that are watched
_UNWATCHED_STEPS: Final = 8  # before them: what was not cached of the prompts, and the steps that still wait for it
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
    name = event["name"].removeprefix("void ").split("(")[0].split("<")[0].strip()[:_LONGEST_NAME]
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
    parser.add_argument(
        "workloads",
        nargs="+",
        metavar="WORKLOAD",
        help="decode:BATCH:CONTEXT, prefill:COUNT:PROMPT or serve:CONCURRENCY",
    )
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
    """Run a workload twice and watch the second run: the first one captures sizes and compiles kernels."""
    highest_id = min(HIGHEST_ID, engine.facts.vocab_size)
    if workload.kind == "decode":
        jobs = [Job(job.prompt, 1 + _UNWATCHED_STEPS + _STEPS) for job in workload.jobs(highest_id)]
        run = partial(_generate, engine, jobs)
        run(lambda _frame: None)  # now the prompts are cached
        watch = Watch(first=_UNWATCHED_STEPS, tokens=len(jobs))
    elif workload.kind == "prefill":
        run, watch = partial(_generate, engine, workload.jobs(highest_id)), Watch()
    elif workload.kind == "serve":
        run, watch = partial(_serve, engine, closed_loop(workload, highest_id)), Watch()
    else:
        raise SystemExit(f"{workload.name}: only decode, prefill and serve are profiled")
    run(lambda _frame: None)
    if workload.kind != "decode":
        engine.scheduler.flush()
    watch.begin()
    run(watch.see)
    return watch.end()


class Watch:
    """Watches the device from one step on.

    Args:
        first: how many steps to let go by before.
        tokens: only steps of so many tokens count among these; None: all do.
    """

    def __init__(self, first: int = 0, tokens: int | None = None) -> None:
        import torch  # noqa: PLC0415
        from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

        # Without a GPU (in tests) there is no device to watch.
        device = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
        self._profiler = profile(activities=[device])
        self._left, self._tokens = first, tokens
        self._steps = 0
        self._is_on = False

    def begin(self) -> None:
        """Begin, if no step is to go by before."""
        if self._left == 0:
            self._start()

    def see(self, frame: Any) -> None:
        """Count a step."""
        if self._is_on:
            self._steps += frame.num_tokens > 0
        elif frame.num_tokens and self._tokens in {None, frame.num_tokens}:
            self._left -= 1
            self.begin()

    def end(self) -> tuple[list[Charge], int]:
        """Return what was seen, and how many steps it were."""
        import torch  # noqa: PLC0415

        if not self._is_on:
            raise RuntimeError("the workload ended before there was anything to watch")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        return charges(events), max(1, self._steps)

    def _start(self) -> None:
        self._profiler.start()
        self._is_on = True


def _generate(engine: Any, jobs: Sequence[Job], see: Callable[[Any], None]) -> None:
    from octavo_engine.bench.requests import submit  # noqa: PLC0415

    def on_frame(frame: Any) -> tuple[()]:
        see(frame)
        return ()

    engine.generate([submit(job) for job in jobs], on_frame=on_frame)


def _serve(engine: Any, loop: ClosedLoop, see: Callable[[Any], None]) -> None:
    from octavo_engine.bench.closed_loop import run_closed_loop  # noqa: PLC0415

    run_closed_loop(engine, loop.jobs(), loop.concurrency, see=see)


if __name__ == "__main__":
    main()
