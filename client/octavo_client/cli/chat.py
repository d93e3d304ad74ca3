"""`octavo chat`: a conversation in the terminal, answers streamed."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer
from octavo.errors import InvalidRequest, OctavoError

from octavo_client.cli.console import (
    ModelFlag,
    RouterFlag,
    complain,
    err,
    explained,
    open_client,
    router_address,
    write,
)
from octavo_client.cli.generate import (
    FrequencyPenaltyFlag,
    MaxTokensFlag,
    PresencePenaltyFlag,
    RepetitionPenaltyFlag,
    SeedFlag,
    TemperatureFlag,
    TopPFlag,
    stream,
)
from octavo_client.cli.report import summary
from octavo_client.client import OctavoClient
from octavo_client.values import Message, Sampling

_HELP: Final = """\
/clear          forget the conversation
/system TEXT    start over with this system message
/retry          answer the last question again
/help           this list
/quit           end (also Ctrl-D); Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """What was said so far; changed by `/` commands and by each answer."""

    messages: list[Message] = field(default_factory=list)

    def clear(self) -> None:
        """Forget all but the system message."""
        self.messages[:] = [message for message in self.messages if message.role == "system"]

    def restart(self, system: str) -> None:
        """Start over with a system message; an empty one means none."""
        self.messages[:] = [Message("system", system)] if system else []

    def take_back(self) -> str | None:
        """Remove the last question and its answer; return the question, None if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                question = self.messages[index].content
                del self.messages[index:]
                return question
        return None


def chat(
    *,
    system: Annotated[
        str | None, typer.Option(help="System message; default: the model's own.", show_default=False)
    ] = None,
    max_tokens: MaxTokensFlag = 512,
    temperature: TemperatureFlag = None,
    top_p: TopPFlag = None,
    frequency_penalty: FrequencyPenaltyFlag = 0.0,
    presence_penalty: PresencePenaltyFlag = 0.0,
    repetition_penalty: RepetitionPenaltyFlag = None,
    seed: SeedFlag = None,
    model: ModelFlag = "",
    router: RouterFlag = None,
) -> None:
    """Talk with the model."""
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
    )
    conversation = Conversation()
    conversation.restart(system or "")
    # The loop runs only while an answer comes: between answers the terminal belongs to input().
    with explained(), asyncio.Runner() as runner:
        resources = AsyncExitStack()
        client = runner.run(resources.enter_async_context(open_client(router_address(router))))
        try:
            name = runner.run(_model_name(client, model))
            err.print(f"[bold]{name}[/] at {client.target}. /help lists commands, Ctrl-D ends.")
            while (line := _read_line()) is not None:
                question = _command(line, conversation) if line.startswith("/") else line
                if question is None:
                    return
                if question:
                    conversation.messages.append(Message("user", question))
                    _answer(runner, client, conversation, sampling, model)
        finally:
            runner.run(resources.aclose())


def _answer(
    runner: asyncio.Runner, client: OctavoClient, conversation: Conversation, sampling: Sampling, model: str
) -> None:
    """Stream the answer to the last question; without one, the question is taken back."""
    try:
        completion = runner.run(stream_answer(client, conversation, sampling, model))
    except KeyboardInterrupt:
        conversation.take_back()
        err.print("\n[dim]stopped[/]")
    except OctavoError as error:
        conversation.take_back()
        write("\n")
        complain(error)
        if isinstance(error, InvalidRequest) and len(conversation.messages) > 1:
            err.print("If the conversation has grown too long for the model, /clear forgets it.")
    else:
        err.print(completion, style="dim", markup=False, soft_wrap=True)


async def stream_answer(client: OctavoClient, conversation: Conversation, sampling: Sampling, model: str) -> str:
    """Stream one answer, add it to the conversation, and return the line about it."""
    completion = await stream(client.chat(conversation.messages, sampling=sampling, model=model))
    write("\n")
    conversation.messages.append(Message("assistant", completion.text))
    return summary(completion)


def _command(line: str, conversation: Conversation) -> str | None:
    """Do what a `/` line says; return a question to ask now, an empty string for none, None to end."""
    name, _, rest = line.partition(" ")
    match name:
        case "/quit" | "/exit":
            return None
        case "/clear":
            conversation.clear()
        case "/system":
            conversation.restart(rest.strip())
        case "/retry":
            return conversation.take_back() or ""
        case _:
            err.print(_HELP, markup=False)
    return ""


def _read_line() -> str | None:
    """Return the next non-empty line; None at the end of input or on Ctrl-C."""
    try:
        while not (line := input("> " if sys.stdin.isatty() else "").strip()):
            pass
    except (EOFError, KeyboardInterrupt):
        return None
    return line


async def _model_name(client: OctavoClient, model: str) -> str:
    names = [served.name for served in await client.models()]
    return model or ", ".join(names) or "no model yet"
