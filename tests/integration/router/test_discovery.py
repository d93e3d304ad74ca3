from __future__ import annotations

import asyncio
import time

import pytest
import redis.asyncio as aioredis
from octavo.redis_keys import Entry, Lease, RedisKeys
from support.fake_engine import PAGE_SIZE

PREFIX = "test:"


@pytest.fixture
async def redis(valkey):
    async with aioredis.Redis.from_url(valkey.connection_url) as client:
        yield client


async def redis_router(new_router, valkey, *engines, **options):
    router = await new_router(*engines, redis_url=valkey.connection_url, redis_prefix=PREFIX, **options)
    await router.until(lambda: router.router.bus.is_up)
    return router


async def test_engine_that_joins_is_seen_within_two_seconds(valkey, new_engine, new_router):
    router = await redis_router(new_router, valkey)
    engine = await new_engine("e1")
    started_at = time.monotonic()
    await engine.announce(valkey.connection_url, PREFIX)
    await router.serving("e1")
    assert time.monotonic() - started_at < 2
    assert (await router.generate()).accepted.engine_id == "e1"


async def test_engines_that_were_there_first_are_found(valkey, new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    for engine in engines:
        await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1", "e2")


async def test_engine_that_dies_is_left_out_within_two_seconds(valkey, new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    for engine in engines:
        await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1", "e2")
    started_at = time.monotonic()
    await engines[0].kill()
    await router.serving("e2")
    assert time.monotonic() - started_at < 2
    await router.until(lambda: len(router.router.fleet.links) == 1)  # once the lease is over nobody dials it


async def test_engine_that_comes_back_elsewhere_is_found(valkey, new_engine, new_router):
    engine = await new_engine("e1")
    await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1")
    await engine.kill()
    again = await new_engine("e1")
    await again.announce(valkey.connection_url, PREFIX)
    await router.until(lambda: [each.epoch for each in router.router.fleet.serving()] == [again.epoch])


async def test_dead_redis_does_not_stop_serving(valkey, new_engine, new_router):
    engine = await new_engine("e1")
    await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1")
    prompt = [20] * (4 * PAGE_SIZE)
    await router.generate(prompt)
    valkey.terminate()
    await router.until(lambda: not router.router.bus.is_up)
    answer = await router.generate([*prompt, 5])
    assert answer.accepted.matched_pages == 4
    assert len(answer.token_ids[0]) == 8


async def test_router_starts_and_serves_without_redis(valkey, new_engine, new_router):
    engine = await new_engine("e1")
    url = valkey.connection_url
    valkey.terminate()
    router = await new_router(engine, redis_url=url, redis_prefix=PREFIX)
    assert (await router.generate()).accepted.engine_id == "e1"


async def test_fleet_is_found_again_when_redis_comes_back(valkey, new_engine, new_router):
    router = await redis_router(new_router, valkey)
    port = valkey.port
    valkey.terminate()
    await router.until(lambda: not router.router.bus.is_up)
    valkey._desired_port = port
    await asyncio.to_thread(valkey.start)
    engine = await new_engine("e1")
    await engine.announce(valkey.connection_url, PREFIX)
    await router.serving("e1")


async def test_other_routers_see_where_requests_went(valkey, new_engine, new_router):
    engines = [await new_engine("e1"), await new_engine("e2")]
    for engine in engines:
        engine.resident = _Deaf()  # so that only the placement note can tell
    first = await redis_router(new_router, valkey, *engines, router_id="r1")
    second = await redis_router(new_router, valkey, *engines, router_id="r2")
    prompt = [21] * (60 * PAGE_SIZE)  # long enough to outweigh that its engine is busy
    home = (await first.generate(prompt)).accepted.engine_id
    fleet = second.router.fleet
    await second.until(lambda: fleet.engine(home).load.num_running(time.monotonic()) > 0)
    answer = await second.generate([*prompt, 9])
    assert answer.accepted.engine_id == home
    assert answer.accepted.matched_pages == 60


class _Deaf(dict):
    def update(self, *_args):
        """Hold nothing."""


async def test_nonsense_in_redis_is_ignored(valkey, redis, new_engine, new_router):
    keys = RedisKeys(PREFIX)
    await redis.hset(keys.lease("bad1"), mapping={Lease.ADDRESS: "no address", Lease.EPOCH: 1})
    await redis.hset(keys.lease("bad2"), mapping={Lease.ADDRESS: "127.0.0.1:1", Lease.EPOCH: "soon"})
    await redis.hset(keys.lease("bad3"), mapping={b"\xff": b"\xff"})
    engine = await new_engine("e1")
    await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1")
    await redis.hset(keys.lease("e1"), mapping={Lease.LOAD: b"\xff\xff\xff"})
    await redis.xadd(keys.fleet, {"x": b"\xff"})
    await redis.xadd(keys.fleet, {Entry.KIND: "join", Entry.ENGINE_ID: b"\xff\x00"})
    await redis.xadd(keys.placements, {Entry.ENGINE_ID: "e1", Entry.TOKENS: "-1", Entry.HASHES: b"123"})
    await redis.xadd(keys.pages("e1", engine.epoch), {Entry.EVENTS: b"\xff\xff"})
    late = await new_engine("e2")
    await late.announce(valkey.connection_url, PREFIX)
    await router.serving("e1", "e2")
    assert router.router.bus.is_up


async def test_engine_with_another_tokenizer_or_model_gets_nothing(new_engine, new_router):
    right = await new_engine("e1")
    wrong = [
        await new_engine("e2", tokenizer_revision="0123456789abcdef"),
        await new_engine("e3", model_name="other"),
    ]
    addresses = ",".join(engine.address for engine in (right, *wrong))
    router = await new_router(engines=addresses)
    await router.serving("e1")
    for engine in wrong:
        await engine.until(lambda engine=engine: engine.num_links == 0)
    answers = [await router.generate([30 + index] * 9) for index in range(4)]
    assert {answer.accepted.engine_id for answer in answers} == {"e1"}


async def test_engine_whose_lease_names_another_model_is_not_dialled(valkey, new_engine, new_router):
    other, ours = await new_engine("e1", model_name="other"), await new_engine("e2")
    await other.announce(valkey.connection_url, PREFIX)
    await ours.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e2")
    assert [link.address for link in router.router.fleet.links] == [ours.address]
    assert other.num_hellos == 0


async def test_engine_that_comes_back_with_another_model_is_dialled_no_more(valkey, new_engine, new_router):
    engine = await new_engine("e1")
    await engine.announce(valkey.connection_url, PREFIX)
    router = await redis_router(new_router, valkey)
    await router.serving("e1")
    await engine.kill()
    again = await new_engine("e1", model_name="other")
    await again.announce(valkey.connection_url, PREFIX)
    await router.until(lambda: not router.router.fleet.links)
    assert again.num_hellos == 0


async def test_engine_that_caches_nothing_is_thought_to_hold_nothing(new_engine, new_router):
    engine = await new_engine("e1", caches=False)
    router = await new_router(engine)
    prompt = [22] * (4 * PAGE_SIZE)
    answers = [await router.generate(prompt) for _ in range(2)]
    assert [answer.accepted.matched_pages for answer in answers] == [0, 0]
