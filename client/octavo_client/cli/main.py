"""The `octavo` command."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from octavo_client.cli import bench, chat, demo, doctor, fleet, generate, model, up
from octavo_client.cli.console import out

app = typer.Typer(
    name="octavo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:  # noqa: FBT001  # typer calls it with the flag's value
    if asked:
        out.print(f"octavo {metadata.version('octavo-serve')}")
        raise typer.Exit


@app.callback()
def octavo(
    *,
    version: Annotated[  # acts through its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Serve language models: start a fleet, talk to it, look into it."""


app.command()(up.up)
app.command()(demo.demo)
app.command()(chat.chat)
app.command()(generate.generate)
app.command()(fleet.explain)
app.command()(fleet.models)
app.command()(fleet.engines)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.add_typer(model.app, name="model")


def main() -> None:
    """Run the command line."""
    app()
