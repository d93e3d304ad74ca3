from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import pytest_asyncio
from octavo.revision import tokenizer_revision
from octavo_client import Chunk, OctavoClient, Sampling
from support.fake_engine import FakeEngine
from support.router_process import router_process

PROMPT = [30, 31, 32, 33] * 4
NUM_CONNECTIONS = 12


@pytest_asyncio.fixture
async def engine(model_directory):
    engine = FakeEngine("e1", tokenizer_revision=tokenizer_revision(model_directory))
    await engine.start()
    yield engine
    await engine.kill()


async def tokens_of(generation):
    return [token_id async for event in generation if isinstance(event, Chunk) for token_id in event.token_ids]


async def test_workers_share_one_address_and_survive_each_other(model_directory, tmp_path, engine):
    flags = ("--engines", engine.address, "--workers", "2", "--router-id", "r")
    ready_file = tmp_path / "ready.json"
    async with router_process(model_directory, ready_file, *flags) as parent, AsyncExitStack() as stack:
        pids = {line["worker"]: line["pid"] for line in await parent.logged("worker_serves", 2)}
        await parent.logged("workers_serve")
        await parent.logged("engine_joined", 2)

        # Each client has a connection of its own, and the kernel deals them out.
        clients = [await stack.enter_async_context(OctavoClient(parent.address)) for _ in range(NUM_CONNECTIONS)]
        engine.hold_at = 5
        sampling = Sampling(max_tokens=20, seed=3)
        generations = [client.generate(PROMPT, sampling=sampling, return_token_ids=True) for client in clients]
        for generation in generations:
            await anext(generation)

        # A worker that dies loses nothing, and is started again.
        os.kill(pids[0], signal.SIGKILL)
        engine.release()
        outputs = await asyncio.gather(*map(tokens_of, generations))
        assert {len(output) for output in outputs} == {20}
        assert len(set(map(tuple, outputs))) == 1
        num_moved = sum(generation.num_resumes for generation in generations)
        assert 0 < num_moved < NUM_CONNECTIONS
        reborn = (await parent.logged("worker_serves", 3))[2]
        assert reborn["worker"] == 0
        assert reborn["pid"] != pids[0]

        # Told to stop, all of them let their requests end.
        engine.hold_at = 5
        async with OctavoClient(parent.address) as client:
            generation = client.generate(PROMPT, sampling=sampling, return_token_ids=True)
            await anext(generation)
            parent.send(signal.SIGTERM)
            await parent.logged("router_drains", 2)
            engine.release()
            assert tuple(await tokens_of(generation)) == tuple(outputs[0])
            assert generation.num_resumes == 0
        assert await parent.wait() == 0
