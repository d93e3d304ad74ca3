"""`octavo up`: a whole Octavo on this machine, in the foreground, brought back when a part of it dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from octavo.model_directory import DEFAULT_MODEL, served_name
from octavo.redis_url import parse_redis_url, shown_redis_url
from rich.table import Table

from octavo_client.child import Exit
from octavo_client.cli.console import Failed, err, explained, out, printable
from octavo_client.cli.local import DEFAULT_PORT, free_port, stack_options, started, until_signal
from octavo_client.cli.model import prepared_model
from octavo_client.log_lines import readable_line
from octavo_client.running import RunningStack, default_state_directory, remove_running, write_running
from octavo_client.stack import LocalStack, StackFailed
from octavo_client.stack_options import ROUTER, StackOptions
from octavo_client.task_failures import one_failure

_CONFIG_ERROR: Final = 78  # exit status of a process whose configuration is wrong: a restart would not help
_RESTARTS: Final = 5
_RESTARTS_WITHIN_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often a process may come back: waits grow from nothing to 8 s, and the sixth end in two minutes is final."""

    ends: defaultdict[str, list[float]]

    def delay_s(self, name: str, now: float) -> float | None:
        """Note an end; return how long to wait before the next start, None to give up."""
        recent = [end for end in self.ends[name] if now - end < _RESTARTS_WITHIN_S]
        self.ends[name] = [*recent, now]
        if len(recent) >= _RESTARTS:
            return None
        return 0.0 if not recent else float(2 ** (len(recent) - 1))


def up(
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The default model, a hub id, or a directory.")
    ] = DEFAULT_MODEL,
    engines: Annotated[
        int | None, typer.Option(min=1, max=64, help="Engines; default: one per GPU, else 2.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of each engine; default: the cores shared out.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help=f"Port of the router; default: {DEFAULT_PORT} or the next free.", show_default=False
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar="OCTAVO_REDIS_URL",
            help="A Redis server to use; default: an embedded one. On a command line everybody here can read a password.",
            show_default=False,
        ),
    ] = None,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(envvar="OTEL_EXPORTER_OTLP_ENDPOINT", help="Where traces go, such as http://127.0.0.1:4317."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Logs and records; default: in the cache.", show_default=False)
    ] = None,
    engine_flag: Annotated[
        list[str] | None,
        typer.Option(help="Handed to every engine, such as --engine-flag=--max-sequences=64; repeatable."),
    ] = None,
    router_flag: Annotated[list[str] | None, typer.Option(help="Handed to the router; repeatable.")] = None,
) -> None:
    """Start Redis, engines and a router here, and keep them running until Ctrl-C."""
    with explained():
        check_redis_url(redis_url)
        directory = prepared_model(model)
        options = stack_options(
            state_directory=state_dir or default_state_directory(),
            model=str(directory),
            model_name=served_name(model),
            engines=engines,
            threads=threads,
            router_listen=f"127.0.0.1:{free_port() if port is None else port}",
            redis_url=redis_url,
            otlp_endpoint=otlp_endpoint,
            engine_flags=tuple(engine_flag or ()),
            router_flags=tuple(router_flag or ()),
        )
        with only_one(options.state_directory):
            asyncio.run(until_signal(_serve(options)))


def check_redis_url(url: str | None) -> None:
    """Let no stack start that could not reach its Redis.

    Raises:
        Failed: the URL is none.
    """
    if url is not None:
        try:
            parse_redis_url(url)
        except ValueError as error:
            raise Failed(f"the Redis URL {error}") from None


@contextlib.contextmanager
def only_one(state_directory: Path) -> Iterator[None]:
    """Hold the state directory for one stack.

    Raises:
        Failed: another one runs there.
    """
    state_directory.mkdir(parents=True, exist_ok=True)
    with (state_directory / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"a stack runs in {state_directory} already; a second one needs another --state-dir") from None
        yield


async def _serve(options: StackOptions) -> None:
    async with started(options) as stack:
        write_running(
            options.state_directory,
            RunningStack(
                pid=os.getpid(),
                router=stack.router.address,
                router_admin=stack.router.admin_address,
                router_metrics=stack.router.metrics_address,
                log_directory=str(options.log_directory),
            ),
        )
        try:
            _print_endpoints(stack)
            await _keep_running(stack)
        finally:
            remove_running(options.state_directory)


async def _keep_running(stack: LocalStack) -> None:
    """Bring back what ends, each by itself, so that a slow engine holds up no other."""
    restarts = Restarts(defaultdict(list))
    with one_failure(Failed):
        async with asyncio.TaskGroup() as group:
            while True:
                ended = await stack.next_exit()
                group.create_task(_bring_back(stack, ended, restarts))


async def _bring_back(stack: LocalStack, ended: Exit, restarts: Restarts) -> None:
    report_exit(ended)
    while ended.status != _CONFIG_ERROR:
        delay_s = restarts.delay_s(ended.name, time.monotonic())
        if delay_s is None:
            raise Failed(f"{ended.name} ends again and again; its log: {stack.options.log_file(ended.name)}")
        await asyncio.sleep(delay_s)
        try:
            await stack.restart(ended.name)
        except StackFailed as error:
            err.print(printable(str(error)), markup=False, soft_wrap=True)
            continue
        return
    raise Failed(f"{ended.name} refuses its configuration")


def report_exit(ended: Exit) -> None:
    """Print how a process ended and what it said last."""
    err.print(f"[red]{ended.name} {ended.how}[/]; the end of its log:")
    for line in ended.last_lines:
        err.print("  " + printable(readable_line(line)), markup=False, style="dim", soft_wrap=True)


def _print_endpoints(stack: LocalStack) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "gRPC", "admin", "metrics", "process"):
        table.add_column(heading)
    for name, ends in {ROUTER: stack.router, **stack.engines}.items():
        table.add_row(f"[bold]{name}[/]", ends.address, ends.admin_address, ends.metrics_address, str(ends.pid))
    out.print(table)
    out.print(f"redis    {shown_redis_url(stack.redis_url)}", soft_wrap=True)
    out.print(f"logs     {stack.options.log_directory}", soft_wrap=True)
    out.print("Try [bold]octavo chat[/] in another terminal. Ctrl-C stops everything.")
