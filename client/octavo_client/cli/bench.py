"""`octavo bench`: how fast this machine serves, beside its own limits and beside peers."""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from octavo.model_directory import DEFAULT_MODEL, ModelNotFound
from rich.table import Table

from octavo_client.bench.closed import Closed, ClosedOptions
from octavo_client.bench.results import Result, ResultFile
from octavo_client.bench.suite import DEFAULT_SHAPES, TARGETS, Suite, SuiteOptions
from octavo_client.bench.worker import WorkerFailed
from octavo_client.cli.console import EXIT_FAILED, Failed, err, out, printable, run
from octavo_client.cli.local import visible_gpus
from octavo_client.stack import StackFailed

# A router process has one core's worth of work at most.
_ROUTERS = max(1, min(4, (os.cpu_count() or 1) // 4))
_SUITE = "suite gpu"
_CLOSED = "suite cpu"


class SuiteName(enum.StrEnum):
    """What to run."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


def bench(
    *,
    suite: Annotated[
        SuiteName, typer.Option(help="cpu: a closed loop beside a peer; gpu: named workloads; auto: what is here.")
    ] = SuiteName.AUTO,
    output: Annotated[Path | None, typer.Option(help="File of JSON lines to append results to.")] = None,
    commit: Annotated[str | None, typer.Option(help="Commit to note; default: asks git.", show_default=False)] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each contender.")] = os.cpu_count() or 1,
    numerics: Annotated[
        list[str] | None, typer.Option(help="exact or fast; repeatable; default: both.", show_default=False)
    ] = None,
    concurrency: Annotated[
        list[int],
        typer.Option("--concurrency", "-c", help="Requests in flight; repeatable.", rich_help_panel=_CLOSED),
    ] = [1, 8, 32],  # noqa: B006  # typer reads the default, nobody changes it
    requests: Annotated[
        int, typer.Option(help="Requests of a run (at most eight per client).", rich_help_panel=_CLOSED)
    ] = 32,
    prompt_len: Annotated[int, typer.Option(help="Prompt tokens.", rich_help_panel=_CLOSED)] = 128,
    output_len: Annotated[int, typer.Option(help="Output tokens.", rich_help_panel=_CLOSED)] = 64,
    repeat: Annotated[int, typer.Option(help="Rounds; the median counts.", rich_help_panel=_CLOSED)] = 3,
    peer: Annotated[
        list[str],
        typer.Option(help="Type that transformers runs in, or none; repeatable.", rich_help_panel=_CLOSED),
    ] = ["float32"],  # noqa: B006  # as above
    serve: Annotated[bool, typer.Option(help="Also measure through the router.", rich_help_panel=_CLOSED)] = True,
    model: Annotated[str, typer.Option(help="Model directory or name.", rich_help_panel=_CLOSED)] = DEFAULT_MODEL,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Random model, or a model directory; repeatable; default: {' and '.join(DEFAULT_SHAPES)}.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as decode:32:1024 or serve:8; repeatable; default: all.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{' or '.join(TARGETS)}; repeatable; default: both.", show_default=False, rich_help_panel=_SUITE
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Setting of the engine; repeatable.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    offline_setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="The same for offline runs alone; repeatable.",
            show_default=False,
            rich_help_panel=_SUITE,
        ),
    ] = None,
    routers: Annotated[
        int, typer.Option(min=1, help="Router processes behind one address.", rich_help_panel=_SUITE)
    ] = _ROUTERS,
    limit_s: Annotated[
        float | None,
        typer.Option(help="Start no workload later than this.", show_default=False, rich_help_panel=_SUITE),
    ] = None,
) -> None:
    """Measure this machine: on a CPU a closed loop beside a peer, on a GPU named workloads beside their floors."""
    file = None if output is None else ResultFile(output, commit)
    if suite is SuiteName.GPU or (suite is SuiteName.AUTO and visible_gpus(os.environ, Path("/dev"))):
        _run_suite(
            SuiteOptions(
                shapes=shape or DEFAULT_SHAPES,
                workloads=workload,
                numerics=numerics or ("fast", "exact"),
                targets=_targets(target),
                settings=_settings(setting),
                offline_settings=_settings(offline_setting),
                threads=threads,
                routers=routers,
                limit_s=limit_s,
            ),
            file,
        )
        return
    contenders = [f"octavo:{mode}" for mode in numerics or ("exact", "fast")]
    _run_closed(
        ClosedOptions(
            model=model,
            threads=threads,
            contenders=contenders + [f"transformers:{dtype}" for dtype in peer if dtype != "none"],
            concurrency=concurrency,
            requests=requests,
            prompt_len=prompt_len,
            output_len=output_len,
            repeat=repeat,
            serve=serve,
        ),
        file,
    )


def _run_closed(options: ClosedOptions, file: ResultFile | None) -> None:
    async def measure() -> list[Result]:
        try:
            return await Closed(options, _tell).measure()
        except (ModelNotFound, WorkerFailed, StackFailed) as error:
            raise Failed(str(error)) from None

    results = run(measure())
    out.print(_closed_table(results, options.concurrency))
    if file is not None:
        file.append(results)


def _run_suite(options: SuiteOptions, file: ResultFile | None) -> None:
    results: list[Result] = []

    def keep(more: Sequence[Result]) -> None:
        results.extend(more)
        if file is not None:
            file.append(more)

    async def measure() -> None:
        try:
            await Suite(options, tell=_tell, keep=keep).run()
        except (ModelNotFound, ValueError) as error:
            raise Failed(str(error)) from None

    try:
        run(measure())
    finally:  # also after Ctrl-C: what was measured counts
        for shape in dict.fromkeys(result.shape for result in results):
            out.print(_suite_table(shape, [result for result in results if result.shape == shape]))
    if any(result.error is not None for result in results):
        raise typer.Exit(EXIT_FAILED)


def _targets(given: list[str] | None) -> Sequence[str]:
    for target in given or ():
        if target not in TARGETS:
            raise typer.BadParameter(f"no target {target!r}; there are {' and '.join(TARGETS)}")
    return given or TARGETS


def _settings(given: list[str] | None) -> dict[str, str]:
    pairs = [setting.partition("=") for setting in given or ()]
    for key, equals, _ in pairs:
        if not equals:
            raise typer.BadParameter(f"{key!r} is not of the form KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _tell(line: str) -> None:
    err.print(printable(line), markup=False, soft_wrap=True)


def _closed_table(results: Sequence[Result], concurrency: Sequence[int]) -> Table:
    table = Table("", *(f"c = {each}" for each in concurrency), title="output tokens/s, prefill included (median)")
    rows: dict[str, list[str]] = {}
    for result in results:
        name = f"{result.engine} {result.variant} ({result.target})"
        rows.setdefault(name, []).append(f"{result.value:.1f}")
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _suite_table(shape: str, results: Sequence[Result]) -> Table:
    """Return a row for each metric; a value stands beside its share of the best possible one."""
    variants = list(dict.fromkeys(result.variant for result in results))
    table = Table("workload", "metric", *(f"octavo {each}" for each in variants), "best possible", "peer", title=shape)
    rows: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.target, result.workload, result.metric), []).append(result)
    for (target, workload, metric), row in rows.items():
        cells = {result.variant: _cell(result) for result in row}
        name = f"{workload} ({target})" if workload == "start" else workload
        floor, peer = row[0].floor, row[0].peer
        table.add_row(
            name,
            metric or "failed",
            *(cells.get(variant, "") for variant in variants),
            "" if floor is None else f"{floor:.4g}",
            "" if peer is None else _share(peer.value, peer.fraction),
        )
    return table


def _cell(result: Result) -> str:
    if result.error is not None:
        return result.error.partition("\n")[0][:60]
    return _share(result.value, result.fraction)


def _share(value: float, fraction: float | None) -> str:
    return f"{value:.4g}" if fraction is None else f"{value:.4g} ({fraction:.0%})"
