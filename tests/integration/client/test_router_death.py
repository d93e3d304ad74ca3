from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import pytest_asyncio
from octavo.revision import tokenizer_revision
from octavo_client import Chunk, Completion, Generation, OctavoClient, Sampling
from octavo_client.collector import Collector
from support.fake_engine import FakeEngine
from support.router_process import RouterProcess, router_process
from support.tiny_tokenizer import write_model_directory

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [30, 31, 32, 33] * 4
HELD_AT = 7
SAMPLINGS = [
    Sampling(temperature=0.0, max_tokens=40, seed=1),
    Sampling(temperature=0.9, max_tokens=40, seed=5, n=2),
    Sampling(temperature=0.9, max_tokens=40, n=2, stop=("never said", "€€")),
]


class Fleet:
    """Two router processes in front of one scripted engine."""

    def __init__(self, engine: FakeEngine, client: OctavoClient, routers: dict[str, RouterProcess]) -> None:
        self.engine = engine
        self.client = client
        self.routers = routers  # by address

    def generate(self, sampling: Sampling) -> Generation:
        return self.client.generate(PROMPT, sampling=sampling, logprobs=True, return_token_ids=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("routers")
    model = write_model_directory(folder / "tiny")
    async with AsyncExitStack() as stack:
        engine = FakeEngine("e1", tokenizer_revision=tokenizer_revision(model))
        await engine.start()
        stack.push_async_callback(engine.kill)
        flags = ("--engines", engine.address)
        routers = [
            await stack.enter_async_context(router_process(model, folder / f"{index}.json", *flags))
            for index in range(3)
        ]
        await asyncio.gather(*(router.logged("router_serves") for router in routers))
        await asyncio.gather(*(router.logged("engine_joined") for router in routers))
        by_address = {router.address: router for router in routers}
        client = await stack.enter_async_context(OctavoClient(tuple(by_address)))
        yield Fleet(engine, client, by_address)


async def held(generation: Generation, num_choices: int) -> Collector:
    """Read a generation up to where the engine holds it."""
    collector, num_tokens = Collector(num_choices), 0
    while num_tokens < HELD_AT * num_choices:
        event = await anext(generation)
        collector.add(event)
        num_tokens += event.num_tokens if isinstance(event, Chunk) else 0
    return collector


async def rest(generation: Generation, collector: Collector) -> Completion:
    async for event in generation:
        collector.add(event)
    return collector.completion(ttft_s=None, duration_s=0.0)


async def compare_with_undisturbed_run(fleet: Fleet, completion: Completion, sampling: Sampling) -> None:
    again = replace(sampling, seed=completion.accepted.seed)
    undisturbed = await fleet.generate(again).completion()
    assert completion.choices == undisturbed.choices
    assert completion.usage.output_tokens == undisturbed.usage.output_tokens == 40 * sampling.n


async def test_killed_router_is_not_noticed(fleet: Fleet) -> None:
    fleet.engine.hold_at = HELD_AT
    # Routers take requests in turn: of nine, each kind is at the first one once, whether three take part or two.
    samplings = [SAMPLINGS[(index + index // 3) % 3] for index in range(9)]
    generations = [fleet.generate(sampling) for sampling in samplings]
    collectors = [
        await held(generation, sampling.n) for generation, sampling in zip(generations, samplings, strict=True)
    ]
    address = generations[0].router
    victims = [generation.router == address for generation in generations]
    assert {samplings.index(sampling) for sampling, victim in zip(samplings, victims, strict=True) if victim} == {
        0,
        1,
        2,
    }
    fleet.routers[address].send(signal.SIGKILL)
    fleet.engine.release()
    completions = await asyncio.gather(*map(rest, generations, collectors))
    assert [generation.num_resumes for generation in generations] == [int(victim) for victim in victims]
    for completion, sampling in zip(completions, samplings, strict=True):
        await compare_with_undisturbed_run(fleet, completion, sampling)


async def test_frozen_router_is_left_within_seconds(fleet: Fleet) -> None:
    fleet.engine.hold_at = HELD_AT
    generation = fleet.generate(SAMPLINGS[1])
    collector = await held(generation, 2)
    victim = fleet.routers[generation.router]
    loop = asyncio.get_running_loop()
    started = loop.time()
    victim.send(signal.SIGSTOP)
    fleet.engine.release()
    try:
        completion = await rest(generation, collector)
        assert loop.time() - started < 8
        assert generation.num_resumes == 1
        await compare_with_undisturbed_run(fleet, completion, SAMPLINGS[1])
    finally:
        victim.send(signal.SIGCONT)
