"""The whole path with a real model: real processes, real gRPC, real Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import transformers
from octavo.model_directory import resolve_model
from octavo_client import Accepted, Chunk, Completion, Finished, Generation, Message, OctavoClient, Sampling
from octavo_client.admin import AdminClient
from octavo_client.collector import Collector
from octavo_client.stack import LocalStack
from support.router_process import router_process

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

GREEDY = Sampling(temperature=0.0, max_tokens=24, ignore_eos=True)
SYSTEM = "You are a patient teacher who answers in short sentences and likes to give one example for each claim. " * 3


class Answer:
    """Everything that one generation gave."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None

    def add(self, event: Accepted | Chunk | Finished) -> None:
        if isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Chunk):
            assert event.position == len(self.token_ids), "a token came twice, or was lost"
            self.text += event.text
            self.token_ids += event.token_ids
        else:
            self.finished = event


async def ask(
    stack: LocalStack,
    prompt: str,
    sampling: Sampling = GREEDY,
    after: Callable[[Answer], Awaitable[None]] | None = None,
) -> Answer:
    """Generate; `after` is called once, with the first tokens."""
    answer = Answer()
    async with OctavoClient(stack.router.address) as client:
        async for event in client.generate(prompt, sampling=sampling, return_token_ids=True):
            answer.add(event)
            if after is not None and answer.token_ids:
                await after(answer)
                after = None
    return answer


async def until_engines_are(stack: LocalStack, names: set[str]) -> float:
    """Wait until the router serves exactly these engines; return how long it took, in seconds."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with AdminClient(stack.router.admin_address) as admin, asyncio.timeout(30):
        while {engine.engine_id for engine in await admin.engines() if engine.state == "serving"} != names:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the state lives in another process, which has no event for it
    return loop.time() - started


async def test_streamed_text_is_the_detokenized_greedy_output(stack: LocalStack) -> None:
    answer = await ask(stack, "The capital of France is")
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model())
    assert "Paris" in answer.text
    assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    assert len(answer.token_ids) == 24


async def test_chat_goes_through_the_models_template(stack: LocalStack) -> None:
    question = "What is the capital of France?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_model())
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    messages = [Message(role="user", content=question)]
    async with OctavoClient(stack.router.address) as client:
        chat = await client.chat(messages, sampling=Sampling(temperature=0.0, max_tokens=24)).completion()
    assert chat.usage.prompt_tokens == len(tokenizer.encode(rendered, add_special_tokens=False))
    assert "Paris" in chat.text


async def test_requests_reach_the_engine_that_holds_their_prefix(stack: LocalStack) -> None:
    first = await ask(stack, SYSTEM + "Why is the sky blue?")
    assert first.accepted is not None
    for question in ("Why is grass green?", "What is rain?", "How do birds fly?"):
        again = await ask(stack, SYSTEM + question)
        assert again.accepted is not None
        assert again.finished is not None
        assert again.accepted.engine_id == first.accepted.engine_id
        assert again.finished.usage.cached_tokens >= 48, again.accepted.reason


async def test_seeded_output_is_the_same_on_every_engine(stack: LocalStack) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=11, max_tokens=24, ignore_eos=True)
    answers = await asyncio.gather(*(ask(stack, "Once upon a time", sampling) for _ in range(4)))
    assert len({tuple(answer.token_ids) for answer in answers}) == 1


async def test_stop_string_ends_the_text_without_showing(stack: LocalStack) -> None:
    whole = await ask(stack, "The capital of France is")
    word = whole.text.split()[3]
    stopped = await ask(stack, "The capital of France is", Sampling(temperature=0.0, max_tokens=24, stop=(word,)))
    assert stopped.finished is not None
    assert stopped.finished.stopped_by == word
    assert stopped.text == whole.text[: whole.text.index(word)]


async def test_killed_engine_leaves_the_stream_whole_and_the_fleet_within_two_seconds(stack: LocalStack) -> None:
    sampling = Sampling(temperature=0.7, seed=5, max_tokens=60, ignore_eos=True)
    undisturbed = await ask(stack, "Tell me about the sea.", sampling)
    left_after = -1.0

    async def kill(answer: Answer) -> None:
        nonlocal left_after
        assert answer.accepted is not None
        victim = int(answer.accepted.engine_id[-1])
        await stack.kill_engine(victim)
        left_after = await until_engines_are(stack, {f"engine-{3 - victim}"})

    moved = await ask(stack, "Tell me about the sea.", sampling, after=kill)
    assert moved.accepted is not None
    assert moved.finished is not None
    victim = int(moved.accepted.engine_id[-1])
    await stack.start_engine(victim)
    joined_after = await until_engines_are(stack, {"engine-1", "engine-2"})
    assert (moved.token_ids, moved.text) == (undisturbed.token_ids, undisturbed.text)
    assert moved.finished.num_moves == 1
    assert moved.finished.usage.output_tokens == 60
    assert left_after < 2
    assert joined_after < 2


async def test_killed_router_leaves_every_stream_whole(stack: LocalStack, tmp_path: Path) -> None:
    samplings = [
        Sampling(temperature=0.0, max_tokens=24, ignore_eos=True, stop=("!?", " the sea was")),
        Sampling(temperature=0.8, top_p=0.9, seed=5, max_tokens=24, ignore_eos=True, n=2),
    ]
    async with (
        router_process(resolve_model(), tmp_path / "ready.json", "--redis-url", stack.redis_url) as spare,
        contextlib.AsyncExitStack() as restarted,
    ):
        await spare.logged("engine_joined", 2)
        async with OctavoClient(f"{stack.router.address},{spare.address}") as client:

            def start(sampling: Sampling) -> Generation:
                prompt = "Tell me about the sea."
                return client.generate(prompt, sampling=sampling, logprobs=True, return_token_ids=True)

            undisturbed = [await start(sampling).completion() for sampling in samplings]
            # Routers take requests in turn, so each kind is at either once.
            generations = [start(sampling) for sampling in samplings * 2]
            begun = [asyncio.Event() for _ in generations]
            readers = [
                asyncio.create_task(read(generation, sampling.n, event))
                for generation, sampling, event in zip(generations, samplings * 2, begun, strict=True)
            ]
            await asyncio.gather(*(event.wait() for event in begun))
            # Callbacks run last first. A new router serves once it has heard of engines.
            restarted.push_async_callback(until_engines_are, stack, {"engine-1", "engine-2"})
            restarted.push_async_callback(stack.start_router)
            await stack.kill_router()
            completions = await asyncio.gather(*readers)
    assert sum(generation.num_resumes for generation in generations) == 2
    for completion, expected in zip(completions, undisturbed * 2, strict=True):
        assert completion.choices == expected.choices
        assert completion.usage.output_tokens == expected.usage.output_tokens


async def read(generation: Generation, num_choices: int, begun: asyncio.Event) -> Completion:
    """Read a generation to its end, and tell when it has output."""
    collector = Collector(num_choices)
    async for event in generation:
        collector.add(event)
        if isinstance(event, Chunk):
            begun.set()
    return collector.completion(ttft_s=None, duration_s=0.0)


async def test_dead_redis_does_not_stop_serving(stack: LocalStack) -> None:
    await stack.kill_redis()
    try:
        answer = await ask(stack, "The capital of Italy is")
        assert "Rome" in answer.text
    finally:
        await stack.start_redis()
