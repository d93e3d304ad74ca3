"""`octavo generate`: one prompt, one answer, streamed or as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from octavo_client.cli.console import (
    Failed,
    JsonFlag,
    ModelFlag,
    RouterFlag,
    err,
    open_client,
    out,
    printable,
    router_address,
    run,
    write,
)
from octavo_client.cli.report import summary
from octavo_client.client import OctavoClient
from octavo_client.collector import Collector
from octavo_client.generation import Generation
from octavo_client.values import Accepted, Chunk, Completion, Message, Priority, Sampling

MaxTokensFlag = Annotated[int, typer.Option(min=0, help="Most output tokens; 0: what the context leaves.")]
TemperatureFlag = Annotated[
    float | None, typer.Option(min=0, max=100, help="Randomness; 0 is greedy.", show_default=False)
]
SeedFlag = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same tokens.", show_default=False)]
TopPFlag = Annotated[
    float | None, typer.Option(help="Keep the likeliest tokens up to this probability.", show_default=False)
]
TopKFlag = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0: all.")]
FrequencyPenaltyFlag = Annotated[
    float, typer.Option(min=-2, max=2, help="Make a token less likely each time it comes in the answer.")
]
PresencePenaltyFlag = Annotated[
    float, typer.Option(min=-2, max=2, help="Make tokens that came in the answer less likely.")
]
RepetitionPenaltyFlag = Annotated[
    float | None,
    typer.Option(min=0.01, max=100, help="Make tokens of prompt and answer less likely; 1 is off.", show_default=False),
]


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to go on from; - reads standard input.")],
    *,
    chat: Annotated[bool, typer.Option("--chat", help="Take the prompt as a question in a chat.")] = False,
    system: Annotated[str | None, typer.Option(help="System message; with --chat.", show_default=False)] = None,
    max_tokens: MaxTokensFlag = 128,
    temperature: TemperatureFlag = None,
    top_p: TopPFlag = None,
    top_k: TopKFlag = 0,
    frequency_penalty: FrequencyPenaltyFlag = 0.0,
    presence_penalty: PresencePenaltyFlag = 0.0,
    repetition_penalty: RepetitionPenaltyFlag = None,
    seed: SeedFlag = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends the answer; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=8, help="Number of answers.")] = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's own end.")] = False,
    batch: Annotated[bool, typer.Option("--batch", help="Give way to interactive requests.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Deadline, seconds.", show_default=False)] = None,
    model: ModelFlag = "",
    router: RouterFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Generate text."""
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        n=n,
        ignore_eos=ignore_eos,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    priority = Priority.BATCH if batch else Priority.INTERACTIVE

    def start(client: OctavoClient) -> Generation:
        if not chat:
            return client.generate(text, sampling=sampling, model=model, priority=priority, timeout_s=timeout)
        messages = [Message("system", system)] if system else []
        messages.append(Message("user", text))
        return client.chat(messages, sampling=sampling, model=model, priority=priority, timeout_s=timeout)

    async def work() -> None:
        async with open_client(router_address(router)) as client:
            generation = start(client)
            if as_json or n > 1:
                completion = await generation.completion()
                _print_whole(completion, as_json=as_json)
            else:
                completion = await stream(generation)
                write("\n")
            if not as_json:
                trace = f", trace {completion.accepted.trace_id}" if completion.accepted.trace_id else ""
                err.print(f"{summary(completion)}{trace}", style="dim", markup=False, soft_wrap=True)

    async def checked() -> None:
        if system and not chat:
            raise Failed("--system goes with --chat")
        await work()

    run(checked())


async def stream(generation: Generation) -> Completion:
    """Write a generation of one choice to standard output as it comes; return it whole."""
    collector = Collector()
    async with generation:
        async for event in generation:
            collector.add(event)
            match event:
                case Chunk(text=text):
                    write(text)
                case Accepted() | _:
                    pass
    return collector.completion(ttft_s=generation.ttft_s, duration_s=generation.duration_s)


def _print_whole(completion: Completion, *, as_json: bool) -> None:
    if as_json:
        out.print(json.dumps(asdict(completion), ensure_ascii=False), soft_wrap=True, markup=False)
        return
    for index, choice in enumerate(completion.choices):
        out.print(f"[{index}] {choice.finish_reason}", style="dim", markup=False, soft_wrap=True)
        out.print(printable(choice.text), soft_wrap=True, markup=False)
