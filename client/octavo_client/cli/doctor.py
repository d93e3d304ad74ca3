"""`octavo doctor`: is everything here that Octavo needs?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Final

import typer

from octavo_client.cli.console import EXIT_FAILED, JsonFlag, RouterFlag, err, out, printable
from octavo_client.cli.local import DEFAULT_PORT
from octavo_client.doctor import Finding, State, examine
from octavo_client.running import default_state_directory, read_running

_MARKS: Final = {State.OK: "[green]✓[/]", State.NOTE: "[yellow]![/]", State.WRONG: "[red]✗[/]"}


def doctor(
    *,
    router: RouterFlag = None,
    redis_url: Annotated[
        str | None,
        typer.Option(envvar="OCTAVO_REDIS_URL", help="A Redis server that must answer.", show_default=False),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this machine, and say how to mend what is wrong. Exit status 1 if something is."""
    running = read_running(default_state_directory())
    target = router or (running.router if running else None)
    findings: list[Finding] = []
    for check in examine(router=target, redis_url=redis_url, port=DEFAULT_PORT):
        with err.status("Checking"):
            findings.append(check())
        if not as_json:
            show(findings[-1])
    if as_json:
        out.print(json.dumps([asdict(finding) for finding in findings]), soft_wrap=True, markup=False)
    if any(finding.state is State.WRONG for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def show(finding: Finding) -> None:
    """Print one finding."""
    out.print(_MARKS[finding.state], end=" ")
    out.print(finding.what, markup=False, end=" ")
    out.print(printable(finding.detail), style="dim", markup=False, soft_wrap=True)
    if finding.remedy and finding.state is not State.OK:
        out.print(f"  → {printable(finding.remedy)}", markup=False, soft_wrap=True)
