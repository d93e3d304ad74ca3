"""`octavo demo`: from nothing to a streamed answer on this machine, and what happened on the way."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from octavo.model_directory import DEFAULT_MODEL, served_name
from rich.table import Table

from octavo_client.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Failed, err, explained, out, printable, write
from octavo_client.cli.generate import stream
from octavo_client.cli.local import stack_options, started, until_signal
from octavo_client.cli.model import prepared_model
from octavo_client.cli.report import tokens_per_second
from octavo_client.client import OctavoClient
from octavo_client.log_lines import readable_line
from octavo_client.stack_options import StackOptions
from octavo_client.values import Completion, Message, Sampling

_ARTICLE: Final = """\
You answer questions about this text in one or two short sentences.

An octavo is a book made of sheets that are folded three times into eight leaves, which makes sixteen pages. Printers \
laid out all sixteen pages on one large sheet, eight on each side, so that after folding and cutting they followed \
each other in the right order. The first octavos were printed in the fifteenth century. Aldus Manutius, a printer in \
Venice, made the format popular from 1501 on: his small books of Latin and Italian poets fitted into a pocket, cost \
less than the large folios of the time, and could be read anywhere. Students and travellers bought them by the \
thousand, and other printers soon copied both the size and his slanted type, which is now called italic."""
DEFAULT_QUESTIONS: Final = (
    "Which printer made the octavo popular?",
    "How many leaves and pages does an octavo have?",
)


def demo(
    prompt: Annotated[
        str | None, typer.Argument(help="A question of yours, asked in place of the second.", show_default=False)
    ] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The default model, a hub id, or a directory.")
    ] = DEFAULT_MODEL,
    engines: Annotated[
        int | None, typer.Option(min=1, max=64, help="Engines; default: one per GPU, else 2.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of each answer.")] = 64,
) -> None:
    """Start everything, ask two questions that share a long prefix, show what happened, and stop again."""
    with explained():
        directory = prepared_model(model)
        with tempfile.TemporaryDirectory(prefix="octavo-demo-") as state:
            options = stack_options(
                state_directory=Path(state),
                model=str(directory),
                model_name=served_name(model),
                engines=engines,
                threads=None,
            )
            questions = (DEFAULT_QUESTIONS[0], prompt or DEFAULT_QUESTIONS[1])
            answers = asyncio.run(until_signal(_run(options, questions, max_tokens)))
        if answers is None:
            raise typer.Exit(EXIT_INTERRUPTED)
        if not all(answer.usage.output_tokens for answer in answers):
            err.print("[red]error:[/] no tokens came")
            raise typer.Exit(EXIT_FAILED)


async def _run(options: StackOptions, questions: tuple[str, ...], max_tokens: int) -> list[Completion]:
    """Ask each question once; return the answers.

    Raises:
        Failed: a process did not start, or died on the way.
    """
    async with started(options) as stack:
        engines = ", ".join(f"{name} (process {ends.pid})" for name, ends in stack.engines.items())
        err.print(f"[green]✓[/] router at {stack.router.address}, {engines}")
        died = asyncio.create_task(stack.next_exit())
        asking = asyncio.create_task(ask_all(stack.router.address, questions, max_tokens))
        try:
            await asyncio.wait((died, asking), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                ended = died.result()
                raise Failed("\n  ".join([f"{ended.name} {ended.how}", *map(readable_line, ended.last_lines)]))
            return asking.result()
        finally:
            died.cancel()
            asking.cancel()


async def ask_all(router: str, questions: tuple[str, ...], max_tokens: int) -> list[Completion]:
    """Stream the answers one after another, and print how they came about."""
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens)
    answers: list[Completion] = []
    async with OctavoClient(router) as client:
        page_size = (await client.models())[0].page_size
        for question in questions:
            out.print(f"\n[bold]> {printable(question)}[/]")
            messages = [Message("system", _ARTICLE), Message("user", question)]
            try:
                answers.append(await stream(client.chat(messages, sampling=sampling, timeout_s=120)))
            finally:
                write("\n")
    out.print()
    out.print(_table(answers, page_size))
    for number, answer in enumerate(answers, start=1):
        trace = f" (trace {answer.accepted.trace_id})" if answer.accepted.trace_id else ""
        out.print(f"why {number}: {printable(answer.accepted.reason)}{trace}", markup=False, soft_wrap=True)
    if len(answers) > 1 and answers[-1].usage.cached_tokens:
        pages = answers[-1].usage.cached_tokens // page_size
        out.print(
            f"The last question begins as the first one does: {pages} pages of keys and values were reused, "
            "because the router sent it to the engine that held them.",
            soft_wrap=True,
        )
    out.print(
        "Next: [bold]octavo up[/] keeps all this running; then [bold]octavo chat[/] in another terminal.",
        soft_wrap=True,
    )
    return answers


def _table(answers: list[Completion], page_size: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", *(f"question {number}" for number, _ in enumerate(answers, start=1))):
        table.add_column(heading)
    table.add_row("time to first token", *(_milliseconds(answer.ttft_s) for answer in answers))
    table.add_row("then", *(_rate(answer) for answer in answers))
    table.add_row("output tokens", *(str(answer.usage.output_tokens) for answer in answers))
    table.add_row("prompt pages reused", *(_pages(answer, page_size) for answer in answers))
    table.add_row("engine", *(answer.engine_id for answer in answers))
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _rate(answer: Completion) -> str:
    rate = tokens_per_second(answer)
    return "-" if rate is None else f"{rate:.0f} tokens/s"


def _pages(answer: Completion, page_size: int) -> str:
    return f"{answer.usage.cached_tokens // page_size} of {answer.usage.prompt_tokens // page_size}"
