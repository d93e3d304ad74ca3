from __future__ import annotations

import asyncio

import pytest
from octavo_client import Chunk, OctavoClient, Sampling

PROMPT = [30, 31, 32, 33] * 4
SAMPLING = Sampling(max_tokens=20, seed=3)


@pytest.fixture
async def engine(new_engine):
    engine = await new_engine("e1")
    engine.hold_at = 7
    return engine


async def tokens_of(generation):
    return [token_id async for event in generation if isinstance(event, Chunk) for token_id in event.token_ids]


def split(routers, generation):
    """Return the router that carries a generation, and the other."""
    return sorted((client.router for client in routers), key=lambda each: each.bound.address != generation.router)


async def test_router_that_stops_in_haste_is_replaced_like_one_that_dies(engine, new_router):
    routers = [await new_router(engine), await new_router(engine)]
    async with OctavoClient([client.router.bound.address for client in routers]) as client:
        generation = client.generate(PROMPT, sampling=SAMPLING, return_token_ids=True)
        await anext(generation)
        home, _ = split(routers, generation)
        rest = asyncio.create_task(tokens_of(generation))
        await home.stop()
        engine.release()
        assert len(await rest) == 20
        assert generation.num_resumes == 1


async def test_draining_router_ends_what_it_has_and_new_requests_go_to_the_other(engine, new_router):
    routers = [await new_router(engine), await new_router(engine)]
    async with OctavoClient([client.router.bound.address for client in routers]) as client:
        held = client.generate(PROMPT, sampling=SAMPLING, return_token_ids=True)
        await anext(held)
        home, other = split(routers, held)
        drain = asyncio.create_task(home.drain(20.0))
        while not home.admission.is_draining:  # noqa: ASYNC110  # it tells nobody, and it takes one turn of the loop
            await asyncio.sleep(0)
        engine.release()
        for _ in range(3):
            generation = client.generate(PROMPT, sampling=SAMPLING)
            await generation.completion()
            assert generation.router == other.bound.address
        assert len(await tokens_of(held)) == 20
        assert held.num_resumes == 0
        assert await drain == 0


async def test_lone_router_that_comes_back_goes_on_itself(engine, new_router):
    first = await new_router(engine)
    address = first.router.bound.address
    async with OctavoClient(address) as client:
        generation = client.generate(PROMPT, sampling=SAMPLING, return_token_ids=True)
        await anext(generation)
        rest = asyncio.create_task(tokens_of(generation))
        await first.router.stop()
        engine.release()
        await new_router(engine, listen=address)
        assert len(await rest) == 20
        assert generation.num_resumes == 1
