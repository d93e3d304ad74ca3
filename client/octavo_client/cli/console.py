"""What all commands share: the terminal, flags, where the router is, and how an error becomes an exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Final, TypeVar

import typer
from octavo.errors import OctavoError, Unavailable
from octavo.tracing import tracer, tracer_provider
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from octavo_client.client import DEFAULT_TARGET, OctavoClient
from octavo_client.running import default_state_directory, read_running

out: Final = Console(highlight=False)
"""Answers and results."""
err: Final = Console(stderr=True, highlight=False)
"""Progress and errors, so that results can be piped."""

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

_T = TypeVar("_T")

RouterFlag = Annotated[
    str | None,
    typer.Option(
        "--router",
        envvar="OCTAVO_ROUTER",
        metavar="HOST:PORT[,HOST:PORT...]",
        help="Address of the router, or of several: an answer goes on at another when one dies. "
        f"Default: the stack of `octavo up`, else {DEFAULT_TARGET}.",
        show_default=False,
    ),
]
ModelFlag = Annotated[str, typer.Option("--model", "-m", help="Name of the model; empty: the only one served.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Failed(Exception):
    """A command cannot do what it was asked; the message is for a person."""


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command's coroutine; errors that are the user's to mend become one line and an exit status."""
    with explained():
        return asyncio.run(work)


@contextmanager
def explained() -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit status."""
    try:
        yield
    except OctavoError as error:
        complain(error)
        raise typer.Exit(EXIT_FAILED) from None
    except Failed as error:
        err.print(f"[red]error:[/] {_plain(str(error))}", soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        err.print()
        raise typer.Exit(EXIT_INTERRUPTED) from None


def complain(error: OctavoError) -> None:
    """Print an error of a request and what may be done about it."""
    if isinstance(error, Unavailable) and error.reason == "unavailable":  # from the transport: nobody is there
        err.print(
            "[red]error:[/] no router answers; start one with [bold]octavo up[/], or give --router HOST:PORT",
            soft_wrap=True,
        )
        return
    where = f" ({error.field})" if error.field else ""
    err.print(f"[red]error:[/] {_plain(error.message)}{where} [dim]{_plain(error.reason)}[/]", soft_wrap=True)
    if error.retry_after_s is not None:
        err.print(f"Try again in {error.retry_after_s:.1f} s.")


def router_address(flag: str | None) -> str:
    """Return the router to talk to."""
    if flag:
        return flag
    running = read_running(default_state_directory())
    return running.router if running else DEFAULT_TARGET


def router_admin_address(flag: str | None) -> str:
    """Return the admin address of the router to talk to.

    Raises:
        Failed: not given, and no stack of `octavo up` runs.
    """
    if flag:
        return flag
    running = read_running(default_state_directory())
    if running is None:
        raise Failed("no stack of `octavo up` runs here: give the router's --admin HOST:PORT")
    return running.router_admin


@asynccontextmanager
async def open_client(router: str) -> AsyncIterator[OctavoClient]:
    """Open a client; its spans are exported if OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        async with OctavoClient(router) as client:
            yield client
        return
    provider = tracer_provider(service="octavo-client", instance=str(os.getpid()), version="", endpoint=endpoint)
    try:
        async with OctavoClient(router, tracer=tracer(provider)) as client:
            yield client
    finally:
        provider.shutdown()


def printable(text: str) -> str:
    """Return text without the control characters by which a model's output could steer the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def write(text: str) -> None:
    """Write streamed text as it is, at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


@contextmanager
def steps() -> Iterator[Callable[[str, float | None], None]]:
    """Show what is being done: a bar on a terminal, a line for each new step elsewhere."""
    if not err.is_terminal:
        last: list[str] = []

        def report(text: str, _fraction: float | None) -> None:
            if last[-1:] != [text]:
                last[:] = [text]
                err.print(_plain(text))

        yield report
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None)

        def show(text: str, fraction: float | None) -> None:
            progress.update(
                task, description=_plain(text), completed=fraction or 0.0, total=None if fraction is None else 1.0
            )

        yield show


def _plain(text: str) -> str:
    """Return text that rich prints as it is."""
    return printable(text).replace("[", r"\[")
