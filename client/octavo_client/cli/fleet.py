"""`octavo models`, `octavo engines`, `octavo explain`: what the fleet has, and where a prompt would go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from octavo_client.admin import AdminClient
from octavo_client.cli.console import (
    JsonFlag,
    ModelFlag,
    RouterFlag,
    err,
    open_client,
    out,
    router_address,
    router_admin_address,
    run,
)
from octavo_client.values import Engine, Explanation, Message

AdminFlag = Annotated[
    str | None,
    typer.Option("--admin", envvar="OCTAVO_ROUTER_ADMIN", metavar="HOST:PORT", help="The router's admin address."),
]


def models(*, router: RouterFlag = None, as_json: JsonFlag = False) -> None:
    """List the models that live engines serve."""

    async def work() -> None:
        async with open_client(router_address(router)) as client:
            served = await client.models()
        rows = [(m.name, str(m.max_model_len), str(m.vocab_size), str(m.page_size), m.revision) for m in served]
        _show(
            [asdict(model) for model in served],
            ("model", "context", "vocabulary", "page", "revision"),
            rows,
            as_json=as_json,
        )
        if not served and not as_json:
            err.print("No engine serves a model yet.")

    run(work())


def engines(*, admin: AdminFlag = None, as_json: JsonFlag = False) -> None:
    """List the engines that a router knows."""

    async def work() -> None:
        async with AdminClient(router_admin_address(admin)) as client:
            known = await client.engines()
        headings = ("engine", "state", "address", "running", "waiting", "pages used + cached")
        rows = [
            (
                engine.engine_id,
                engine.state,
                engine.address,
                str(engine.num_running),
                str(engine.num_waiting),
                f"{engine.pages_in_use} + {engine.pages_cached} of {engine.num_pages}",
            )
            for engine in known
        ]
        _show([asdict(engine) for engine in known], headings, rows, as_json=as_json)
        if not as_json:
            for line in serving_lines(known):
                out.print(line, style="dim", markup=False)
        if not known and not as_json:
            err.print("The router knows no engine.")

    run(work())


def explain(
    prompt: Annotated[str, typer.Argument(help="The prompt to route.")],
    *,
    chat: Annotated[bool, typer.Option("--chat", help="Take the prompt as a question in a chat.")] = False,
    model: ModelFlag = "",
    router: RouterFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell which engine a prompt would go to now, and why."""

    async def work() -> None:
        async with open_client(router_address(router)) as client:
            explanation = await client.explain([Message("user", prompt)] if chat else prompt, model=model)
        if as_json:
            out.print(json.dumps(asdict(explanation)), soft_wrap=True, markup=False)
        else:
            _show_explanation(explanation)

    run(work())


def serving_lines(engines: Sequence[Engine]) -> list[str]:
    """Return what serves what: one line for all engines that are alike."""
    alike: dict[str, list[str]] = {}
    for engine in engines:
        what = f"{engine.model} on {engine.device} by {engine.backend}, {engine.dtype}, {engine.numerics}"
        alike.setdefault(what, []).append(engine.engine_id)
    return [f"{', '.join(names)}: {what}" for what, names in alike.items()]


def _show_explanation(explanation: Explanation) -> None:
    out.print(f"{explanation.prompt_tokens} prompt tokens, {explanation.prompt_pages} full pages")
    table = Table(box=None, pad_edge=False)
    for heading in ("engine", "pages", "to compute", "ahead", "prefill", "pool", "decode", "cost", "lately"):
        table.add_column(heading, justify="left" if heading == "engine" else "right", no_wrap=True)
    for rank, cost in enumerate(explanation.candidates):
        table.add_row(
            cost.engine_id,
            str(cost.matched_pages),
            str(cost.uncached_tokens),
            str(cost.waiting_tokens),
            *(f"{seconds * 1000:.1f}" for seconds in (cost.prefill_s, cost.pool_s, cost.decode_s, cost.cost_s)),
            f"{cost.recent_s:.2f}",
            style="bold" if rank == 0 else None,
        )
    out.print(table)
    out.print(
        "pages held, tokens to compute and ahead, cost and its terms in ms, work sent there lately in s", style="dim"
    )


def _show(
    values: list[dict[str, Any]], headings: Sequence[str], rows: Sequence[tuple[str, ...]], *, as_json: bool
) -> None:
    if as_json:
        out.print(json.dumps(values), soft_wrap=True, markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if rows:
        out.print(table)
