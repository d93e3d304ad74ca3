"""The `octavo` command."""

from __future__ import annotations

import typer

from octavo_client.cli import bench, chat, demo, doctor, fleet, generate, model, up

app = typer.Typer(
    name="octavo",
    help="Serve language models: start a fleet, talk to it, look into it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
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
